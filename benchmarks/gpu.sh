#!/usr/bin/env bash
# What one H100 or H200 reaches: the tests that need a GPU, decoding against the bandwidth, updates and attention against the
# speed of products, the rollout and generate against transformers'. Without a GPU, or with --toy, all of it at toy size.
#
#   benchmarks/gpu.sh [--toy] [PART ...] > gpu.jsonl       PYTHON=.venv/bin/python to choose the interpreter
#
# PARTs: speed tests rollout generate; all, in that order, if none is named; at most 9 minutes together, most of which goes to
# compilers. A part that fails or takes too long says so and the others still run; every line is printed when it is known.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
toy=0
[ "${1:-}" = --toy ] && toy=1 && shift
[ $toy = 1 ] || "$python" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu")' 2>/dev/null || toy=1
[ $toy = 1 ] && export JAX_PLATFORMS=cpu
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
wanted=" $* "
failed=0

part() {  # name, seconds, command
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    [ "$wanted" = "  " ] || [[ $wanted == *" $name "* ]] || return 0
    echo "{\"part\": \"$name\"}"
    timeout "$((toy ? 900 : limit))" "$@" 2>"${TMPDIR:-/tmp}/gpu_part.err"
    local code=$?
    [ $code = 0 ] || { failed=1; tail -c 3000 "${TMPDIR:-/tmp}/gpu_part.err"; echo "{\"part\": \"$name\", \"failed\": $code}"; }
    echo "{\"part\": \"$name\", \"seconds\": $((SECONDS - began))}"
}

sizes=(--shape 0.5b --rows 64 --batches 64 --prompt 512 --new 128)
small=()
[ $toy = 1 ] && sizes=(--shape toy --rows 4 --batches 4 --prompt 16 --new 8) && small=(--toy)
part speed 170 "$python" benchmarks/gpu.py "${small[@]}"
[ $toy = 1 ] || part tests 240 "$python" -m pytest -m gpu tests -q --durations=5
part rollout 120 "$python" benchmarks/rollout.py --workloads fixed --who zsjax-bf16 torch-bf16 --repeats 1 "${sizes[@]}"
part generate 90 "$python" benchmarks/rollout.py --workloads decode --who zsjax-bf16 torch-bf16 torch-bf16-static \
    --repeats 1 "${sizes[@]}"
exit $failed
