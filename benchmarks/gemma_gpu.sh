#!/usr/bin/env bash
# Gemma 3 270M learns to search on one GPU within minutes: experiments/gemma_search.py, its parts side by side.
#
#     WORK=DIR TOKENIZER=DIR bash benchmarks/gemma_gpu.sh prepare     compiles ahead with random weights (compile_ahead.py)
#     WORK=DIR bash benchmarks/gemma_gpu.sh run                       imports WORK/model.gguf and runs everything
#
# `run`: the warm start; then at the same time its evaluation, the BM25 arm with its evaluation, and the simulator arm (collect,
# tune, train, evaluate); then the comparison, and the prompted baselines of the untrained model where time is left.
# OUT gets archives of what each part has written so far, every few seconds, so that a run that is cut off loses little.
# LIMIT: seconds after which everything is stopped. TOKENIZER: a folder with config.json and the tokenizer. MODEL=DIR: a
# model folder in place of the import. EXTRA: further flags of every command. Sizes: STEPS, WARM_STEPS, QUESTIONS, GROUP, ROWS.
set -u
cd "$(dirname "$0")/.."
WORK=$(realpath "${WORK:?a folder}")
began=${BEGAN:-$(date +%s)}
limit=${LIMIT:-400}
python=${PYTHON:-python3}
out=${OUT:-$WORK/out}
mkdir -p "$out" "$WORK/logs" "$WORK/runs"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$WORK/jax_cache} JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
export XLA_PYTHON_CLIENT_PREALLOCATE=false
# Products by cuBLAS's own choice: timing the candidates takes longer than it saves here. XLA stops at flags it does not know.
for flag in ${FLAGS---xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false}; do
    if XLA_FLAGS="${XLA_FLAGS:-} $flag" JAX_PLATFORMS=cpu "$python" -c 'import jax; jax.devices()' 2>/dev/null; then
        export XLA_FLAGS="${XLA_FLAGS:-} $flag"
    fi
done

steps=${STEPS:-40} warm_steps=${WARM_STEPS:-240} rows=${ROWS:-155} questions=${QUESTIONS:-16} group=${GROUP:-8}
common=(--config.search.index_dir="$WORK/indexes" --config.policy.attention=xla --config.simulator.attention=xla
    --config.rollout.simulator_slots=$((questions * group))
    --config.warm_start.steps="$warm_steps" --config.warm_start.checkpoint_every=100000 --config.warm_start.logprob_chunk=64
    --config.tune_simulator.steps="$warm_steps" --config.tune_simulator.checkpoint_every=100000
    --config.tune_simulator.logprob_chunk=64 --config.tune_simulator.max_tokens="${MAX_TOKENS:-832}"
    --config.collect.hold_out=0.12
    --config.train.questions_per_step="$questions" --config.train.group_size="$group"
    --config.train.microbatch_rows=$((questions * group < 8 ? questions * group : 8)) --config.train.logprob_chunk=64
    --config.train.checkpoint_every=100000 --config.train.eval_every=$((steps / 2 > 0 ? steps / 2 : 1))
    --config.train.eval_questions="$rows" --config.train.trajectories_every=10 --config.health.keep_best=false
    --config.optimizer.learning_rate="${RATE:-1e-5}" --config.evaluate.batch_rows="$rows" ${EXTRA:-})

say() { echo "[$(($(date +%s) - began)) s] $*"; }

experiment() { echo "experiments/gemma_search.py:model=$1,packed=false,baselines=false,steps=$steps${2:-}"; }

beside() { if [ "${SERIAL:-0}" = 1 ]; then "$@"; else "$@" & fi; }  # SERIAL=1: one process at a time

launch() {  # log, further arguments
    local log=$WORK/logs/$1.log code attempt
    shift
    for attempt in 1 2; do  # what was compiling beside it may have taken the memory
        "$python" -m zsjax.launch "$@" "${common[@]}" >>"$log" 2>&1 &
        echo $! >>"$WORK/pids"
        wait $!
        code=$?
        [ $code != 0 ] || return 0
        say "FAILED ($code): ${log##*/}"
        tail -n 15 "$log"
        [ $code != 2 ] && [ ! -e "$WORK/stopped" ] || break
        sleep 5
    done
    return $code
}

keep() {  # packs what the parts have written, but for models and checkpoints
    local part
    for part in warm bm25 simulator baselines; do
        [ -d "$WORK/runs/$part" ] || continue
        tar -C "$WORK/runs" --exclude=models --exclude=checkpoints --exclude=indexes --exclude=tensorboard \
            -czf "$WORK/$part.tgz" "$part" 2>/dev/null
        cp "$WORK/$part.tgz" "$out/.$part" && mv "$out/.$part" "$out/$part.tgz"
    done
    tar -C "$WORK" -czf "$WORK/logs.tgz" logs && cp "$WORK/logs.tgz" "$out/logs.tgz"
}

prepare() {
    local blank=$WORK/blank kind
    ahead() {  # log, KIND ..., config
        local log=$WORK/logs/ahead_$1.log
        shift
        "$python" benchmarks/compile_ahead.py "${@:1:$#-1}" --config "${!#}" --workdir "$WORK/runs/ahead_$1" "${common[@]}" \
            >"$log" 2>&1 && say "$(tail -n 1 "$log")" || { say "FAILED: ${log##*/}"; tail -n 5 "$log"; }
    }
    ahead blank blank "${TOKENIZER:?a folder}" "$blank" "$(experiment "$TOKENIZER" ,engine=bm25)"
    # The longest first.
    beside ahead simulator rollout "$(experiment "$blank")"
    for kind in 2 1 0; do beside ahead update$kind update $kind "$(experiment "$blank" ,engine=bm25)"; done
    beside ahead warm_start warm_start "$(experiment "$blank")"
    beside ahead bm25 rollout "$(experiment "$blank" ,engine=bm25)"
    for kind in 2 1 0; do beside ahead score$kind score $kind "$(experiment "$blank" ,engine=bm25)"; done
    beside ahead evaluation evaluation "$(experiment "$blank" ,engine=bm25)"
    wait
    say prepared
}

arm_warm() {
    launch warm evaluate --config "$(experiment "$model" ,start="$WORK/runs/simulator")" --workdir "$WORK/runs/warm"
    say "warm start evaluated: $(scores warm)"
}

arm_bm25() {
    launch bm25 --config "$(experiment "$model" ,engine=bm25,start="$WORK/runs/simulator")" --workdir "$WORK/runs/bm25"
    say "BM25 arm: $(scores bm25)"
}

arm_simulator() {
    launch simulator --config "$(experiment "$model")" --workdir "$WORK/runs/simulator"
    say "simulator arm: $(scores simulator)"
}

scores() {
    "$python" - "$WORK/runs/$1/evaluation.json" <<'PYTHON'
import json, sys
try:
    rows = [row for row in json.load(open(sys.argv[1])) if row.get("data_set", "all") == "all"]
    print("; ".join("{name}: EM {em:.3f} F1 {f1:.3f} searches {searches:.2f} n {n}".format(**row) for row in rows))
except OSError:
    print("not evaluated")
PYTHON
}

run() {
    rm -f "$WORK/pids" "$WORK/stopped"
    ( while true; do sleep "${KEEP_EVERY:-15}" >/dev/null 2>&1; keep; done ) &
    keeper=$!
    # At the limit everything that this script started ends, and what is there is kept.
    ( sleep $((limit - ($(date +%s) - began) - 12)) >/dev/null 2>&1; say "the limit of $limit s is reached"; touch "$WORK/stopped"
      kill $(cat "$WORK/pids"); sleep 4; kill -9 $(cat "$WORK/pids") ) 2>/dev/null &
    guard=$!
    trap 'kill $keeper $guard 2>/dev/null' EXIT
    model=${MODEL:-$WORK/model}
    if [ ! -e "$model/config.json" ]; then
        JAX_PLATFORMS=cpu "$python" -m zsjax.launch import "$WORK/model.gguf" "$model" >"$WORK/logs/import.log" 2>&1 ||
            { tail "$WORK/logs/import.log"; exit 1; }
        say "imported"
    fi
    launch simulator warm-start --config "$(experiment "$model")" --workdir "$WORK/runs/simulator" || { keep; exit 1; }
    say "warm start: $(grep warm_start "$WORK/logs/simulator.log" | tail -n 1)"
    beside arm_simulator
    local arms=$!
    beside arm_bm25
    arms+=" $!"
    beside arm_warm
    wait $arms $!
    if [ -f "$WORK/runs/bm25/evaluation.json" ] && [ -f "$WORK/runs/simulator/evaluation.json" ]; then
        JAX_PLATFORMS=cpu "$python" -m zsjax.launch compare "$WORK/runs/bm25" --workdir "$WORK/runs/simulator" 2>&1 |
            tee "$WORK/runs/simulator/comparison.txt" | head -n 8
    fi
    if [ "${BASELINES:-1}" = 1 ] && [ ! -e "$WORK/stopped" ]; then
        launch baselines evaluate --config "$(experiment "$model" | sed s/baselines=false/baselines=true/)" \
            --workdir "$WORK/runs/baselines"
        say "baselines: $(scores baselines)"
    fi
    kill $keeper $guard 2>/dev/null
    keep
    say "done"
}

"$1"
exit
