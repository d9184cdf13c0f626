#!/usr/bin/env bash
# What one H100 or H200 reaches: the tests that need a GPU, decoding against the bandwidth, the GRPO update against the speed
# of products, the rollout and generate against transformers'. Without a GPU, or with --toy, all of it at toy size.
#
#   benchmarks/gpu.sh [--toy] [PART ...] > gpu.jsonl       PYTHON=.venv/bin/python to choose the interpreter
#
# PARTs: tests decode-3b update-0.6b decode-0.6b update-3b decode-0.5b rollout decode-live loop generate; all, in that order,
# if none is named. At most 9 minutes together; most of it compiles. A part that fails or takes too long says so and the
# others still run; every line is printed when it is known.
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

decode() {  # name, seconds, shape, options of benchmarks/gpu_decode.py
    local name=$1 limit=$2 shape=$3
    shift 3
    [ $toy = 1 ] && shape=toy && set -- --rows 4 8 --context 64 --steps 8 --dtype float32
    part "$name" "$limit" "$python" benchmarks/gpu_decode.py --shape "$shape" "$@"
}

update() {  # name, seconds, options of benchmarks/update.py
    local name=$1 limit=$2
    shift 2
    [ $toy = 1 ] && set -- --shape toy --rows 2 --length 64 --dtype float32
    part "$name" "$limit" "$python" benchmarks/update.py --peers none --repeats 3 "$@"
}

[ $toy = 1 ] || part tests 240 "$python" -m pytest -m gpu tests -q --durations=5
decode decode-3b 80 3b --rows 64 1 8 128 --without-command-buffers
update update-0.6b 70 --shape 0.6b --rows 8 --length 2048 --dtype bfloat16
decode decode-0.6b 60 0.6b --rows 64 1 8 128 --without-command-buffers
update update-3b 80 --shape 3b --layers 12 --rows 8 --length 2048 --dtype bfloat16 --remat layers
decode decode-0.5b 60 0.5b --rows 64 1 8 128
sizes=(--shape 0.5b --rows 64 --batches 64 --prompt 512 --new 128)
[ $toy = 1 ] && sizes=(--shape toy --rows 4 --batches 4 --prompt 16 --new 8)
part rollout 120 "$python" benchmarks/rollout.py --workloads fixed --who zsjax-bf16 torch-bf16 --repeats 1 "${sizes[@]}"
decode decode-live 60 3b --rows 64 --context 4096 --live 1024
[ $toy = 1 ] || export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=+WHILE"
decode loop 60 0.6b --rows 1 64
unset XLA_FLAGS
part generate 90 "$python" benchmarks/rollout.py --workloads decode --who zsjax-bf16 torch-bf16 torch-bf16-static \
    --repeats 1 "${sizes[@]}"
exit $failed
