#!/usr/bin/env bash
# Installs zsjax and trains a small model to search: the whole method on invented worlds, in minutes on two CPU cores.
#
#     bash launch/quickstart.sh [--config.field=value ...]
#
# Interrupted, it goes on where it was. The result is runs/tiny_world/report.html.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh
bash launch/install.sh
exec .venv/bin/python -m zsjax.launch --config experiments/tiny_world.py --workdir runs/tiny_world "$@"
