#!/usr/bin/env bash
# Builds the documentation into build/site; a warning is an error. Open build/site/index.html.
#
#     bash launch/docs.sh            builds; needs no network once the extra `docs` is installed
#     bash launch/docs.sh serve      serves it at 127.0.0.1:8000 and builds again when a page changes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh docs
export JAX_PLATFORMS=cpu
export NO_MKDOCS_2_WARNING=1  # mkdocs-material's notice about a later version of mkdocs, which setup.py excludes
exec .venv/bin/python -m mkdocs "${1:-build}" --strict "${@:2}"
