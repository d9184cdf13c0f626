#!/usr/bin/env bash
# What one H100 or H200 reaches, in at most 9 minutes: the tests that need a GPU, decoding against the bandwidth, the GRPO
# update against the speed of products, transformers' generate. Without a GPU, or with --toy, all of it at toy size.
#
#   benchmarks/gpu.sh [--toy] > gpu.jsonl        PYTHON=.venv/bin/python to choose the interpreter
#
# A part that fails or takes too long says so and the others still run.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
toy=0
[ "${1:-}" = --toy ] && toy=1
[ $toy = 1 ] || "$python" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu")' 2>/dev/null || toy=1
[ $toy = 1 ] && export JAX_PLATFORMS=cpu
failed=0

part() {  # name, seconds, command
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    echo "{\"part\": \"$name\"}"
    timeout "$limit" "$@"
    local code=$?
    [ $code = 0 ] || { failed=1; echo "{\"part\": \"$name\", \"failed\": $code}"; }
    echo "{\"part\": \"$name\", \"seconds\": $((SECONDS - began))}"
}

if [ $toy = 1 ]; then
    part decode 600 "$python" benchmarks/gpu_decode.py --shape toy --rows 4 8 --context 64 --steps 8 --dtype float32
    part "decode, mixed lengths" 600 "$python" benchmarks/gpu_decode.py --shape toy --rows 8 --context 64 --steps 8 \
        --dtype float32 --mixed
    update=(--shape toy --rows 2 --length 64 --dtype float32 --peers none)
    generate=(--shape toy --batches 4 --prompt 16 --new 8 --repeats 1)
else
    part "tests that need a GPU" 100 "$python" -m pytest -m gpu tests -q
    part "decode 3B" 120 "$python" benchmarks/gpu_decode.py --shape 3b --rows 64 256
    part "decode 3B, mixed lengths" 60 "$python" benchmarks/gpu_decode.py --shape 3b --rows 256 --mixed
    part "decode 0.5B" 60 "$python" benchmarks/gpu_decode.py --shape 0.5b --rows 64 256
    update=(--shape 3b --rows 4 --length 4096 --dtype bfloat16 --remat layers --peers none)
    generate=(--shape 0.5b --batches 64 --prompt 512 --new 128 --repeats 1)
fi
if [ -f benchmarks/update.py ]; then
    part "GRPO update" $((toy ? 600 : 110)) "$python" benchmarks/update.py "${update[@]}"
fi
part "generate, ours and transformers'" $((toy ? 600 : 90)) "$python" benchmarks/rollout.py --workloads decode \
    --who zsjax-bf16 torch-bf16 torch-bf16-static "${generate[@]}"
exit $failed
