#!/usr/bin/env bash
# Teaches Gemma 3 270M to search on real questions: fetches and imports the weights, then runs experiments/gemma_search.py.
#
#     bash launch/gemma.sh [:ARG=VALUE,...] [--config.field=value ...]        e.g. :engine=bm25,steps=40
#
# Sizes are the experiment's own. The figures of experiments/README.md are of benchmarks/gemma_gpu.sh, which sets others.
# Interrupted, it goes on where it was. The result is runs/gemma_search/report.html; WORKDIR=DIR puts it elsewhere.
# MODEL=DIR takes a folder in Hugging Face's form instead of the package index's weights.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh
# Arrays of 4 MB or more go back to the system when they are freed. glibc's own limit rises to 32 MB, and it keeps what is
# smaller: some GB where the CPU is the device and a layer's matrices have 5 MB. It costs the tiny world 9 % of a step.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4194304}"
argument=""
if [[ "${1:-}" == :* ]]; then argument=",${1#:}"; shift; fi
bash launch/install.sh
model="${MODEL:-}"
if [[ -z "$model" ]]; then
    model=runs/gemma3-270m
    if [[ ! -e "$model/config.json" ]]; then
        .venv/bin/python -m pip install --quiet gguf
        .venv/bin/python launch/gemma_weights.py runs/gemma3-270m.gguf
        .venv/bin/python -m zsjax.launch import runs/gemma3-270m.gguf "$model"
    fi
fi
exec .venv/bin/python -m zsjax.launch --config "experiments/gemma_search.py:model=$model$argument" \
    --workdir "${WORKDIR:-runs/gemma_search}" "$@"
