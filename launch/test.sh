#!/usr/bin/env bash
# Installs zsjax with what the tests need and runs them; arguments go to pytest.
#
#     bash launch/test.sh [tests/rl -k grpo ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh
bash launch/install.sh test docs release
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
