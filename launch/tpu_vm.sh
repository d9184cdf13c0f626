#!/usr/bin/env bash
# Runs on the TPU chips of this machine (a TPU VM); with --distributed as one host of a slice, see tpu_pod.sh.
#
#     bash launch/tpu_vm.sh --config experiments/X.py --workdir runs/X
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
platform=tpu source launch/env.sh
bash launch/install.sh
exec .venv/bin/python -m zsjax.launch "$@"
