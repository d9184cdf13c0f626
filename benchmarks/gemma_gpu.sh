#!/usr/bin/env bash
# Gemma 3 270M learns to search on one GPU within minutes: experiments/gemma_search.py, its arms side by side.
#
#     WORK=DIR TOKENIZER=DIR bash benchmarks/gemma_gpu.sh prepare     compiles ahead with random weights (compile_ahead.py)
#     WORK=DIR bash benchmarks/gemma_gpu.sh run                       imports WORK/model.gguf and runs everything
#     WORK=DIR bash benchmarks/gemma_gpu.sh arms                      further ARMS from the start that `run` left
#
# `run`: the warm start; then side by side the tuning of the simulator and the arms, those with a simulator when it is tuned;
# and the prompted baselines of the untrained model; then each arm is compared with the first.
# ARMS: lines of a name, an argument of the experiment (-: none) and flags. RATES: learning rates that are compiled ahead.
# OUT gets archives of what has been written so far, every few seconds, so that a run that is cut off loses little.
# LIMIT: seconds after which everything is stopped, of which the last 30 are for saving. TOKENIZER: a folder with config.json
# and the tokenizer. MODEL=DIR: a model folder in place of the import. EXTRA: further flags of every command. Sizes: STEPS, WARM_STEPS, QUESTIONS, GROUP, ROWS.
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

steps=${STEPS:-40} warm_steps=${WARM_STEPS:-228} rows=${ROWS:-155} questions=${QUESTIONS:-16} group=${GROUP:-8}
arms_wanted=${ARMS:-"bm25 ,engine=bm25
simulator -"}
# Both supervised stages have one shape and one schedule, and so one program.
common=(--config.search.index_dir="$WORK/indexes" --config.policy.attention=xla --config.simulator.attention=xla
    --config.rollout.simulator_slots=$((2 * questions))
    --config.warm_start.steps="$warm_steps" --config.warm_start.checkpoint_every=100000 --config.warm_start.logprob_chunk=64
    --config.warm_start.max_tokens="${MAX_TOKENS:-512}"
    --config.tune_simulator.steps="$warm_steps" --config.tune_simulator.checkpoint_every=100000
    --config.tune_simulator.logprob_chunk=64 --config.tune_simulator.max_tokens="${MAX_TOKENS:-512}"
    --config.train.questions_per_step="$questions" --config.train.group_size="$group"
    --config.train.microbatch_rows=$((questions * group < 4 ? questions * group : 4)) --config.train.logprob_chunk=64
    --config.train.checkpoint_every=100000 --config.train.eval_every=$((steps / 2 > 0 ? steps / 2 : 1))
    --config.train.eval_questions="$rows" --config.train.trajectories_every=10 --config.health.keep_best=false
    --config.evaluate.batch_rows="$rows" ${EXTRA:-})

say() { echo "[$(($(date +%s) - began)) s] $*"; }

experiment() { echo "experiments/gemma_search.py:model=$1,packed=false,baselines=false,steps=$steps${2:-}"; }

beside() { if [ "${SERIAL:-0}" = 1 ]; then "$@"; else "$@" & fi; }  # SERIAL=1: one process at a time

launch() {  # log, further arguments
    local log=$WORK/logs/$1.log code attempt
    shift
    for attempt in 1 2 3; do  # what runs beside it may have taken the memory
        "$python" -m zsjax.launch "$@" "${common[@]}" >>"$log" 2>&1 &
        echo $! >>"$WORK/pids"
        wait $!
        code=$?
        [ $code != 0 ] || return 0
        say "FAILED ($code): ${log##*/}"
        tail -n 15 "$log"
        [ ! -e "$WORK/stopped" ] && tail -n 40 "$log" | grep -q "RESOURCE_EXHAUSTED\|CUDA_ERROR" || break
        sleep 20
    done
    return $code
}

keep() {  # packs what has been written, but for models and checkpoints
    tar -C "$WORK" --exclude=models --exclude=checkpoints --exclude=indexes --exclude=tensorboard \
        --exclude=searches.jsonl --exclude=episodes.jsonl -czf "$WORK/kept.tgz" runs logs 2>/dev/null
    cp "$WORK/kept.tgz" "$out/.kept" && mv "$out/.kept" "$out/kept.tgz"
}

prepare() {
    local blank=$WORK/blank kind rate simulator bm25
    simulator=$(experiment "$blank") bm25=$(experiment "$blank" ,engine=bm25)
    ahead() {  # name, config, kind, flags
        local log=$WORK/logs/ahead_$1.log config=$2 kind=$3
        shift 3
        "$python" benchmarks/compile_ahead.py $kind --config "$config" --workdir "$WORK/ahead" "${common[@]}" "$@" >"$log" 2>&1 &&
            say "$(tail -n 1 "$log")" || { say "FAILED: ${log##*/}"; tail -n 5 "$log"; }
    }
    ahead blank "$(experiment "$TOKENIZER" ,engine=bm25)" "blank ${TOKENIZER:?a folder} $blank"
    # The longest first.
    beside ahead simulator "$simulator" rollout
    for rate in ${RATES:-1e-5}; do
        for kind in 2 1 0; do
            beside ahead "update${kind}_$rate" "$bm25" "update $kind" --config.optimizer.learning_rate="$rate"
        done
    done
    beside ahead warm_start "$simulator" warm_start
    beside ahead bm25 "$bm25" rollout
    for kind in 2 1 0; do beside ahead score$kind "$bm25" "score $kind"; done
    beside ahead evaluation "$bm25" evaluation
    wait
    say prepared
}

begin() {  # the model's folder, what is kept, and the end at the limit
    rm -f "$WORK/pids" "$WORK/stopped"
    ( while true; do sleep "${KEEP_EVERY:-15}" >/dev/null 2>&1; keep; done ) &
    keeper=$!
    # At the limit everything that this script started ends, and what is there is kept.
    ( sleep $((limit - ($(date +%s) - began) - 30)) >/dev/null 2>&1; say "the limit of $limit s is reached"; touch "$WORK/stopped"
      kill $(cat "$WORK/pids"); sleep 20; kill -9 $(cat "$WORK/pids") ) 2>/dev/null &
    guard=$!
    trap 'kill $keeper $guard 2>/dev/null; keep' EXIT
    model=${MODEL:-$WORK/model}
    if [ ! -e "$model/config.json" ]; then
        JAX_PLATFORMS=cpu "$python" -m zsjax.launch import "$WORK/model.gguf" "$model" >"$WORK/logs/import.log" 2>&1 ||
            { tail "$WORK/logs/import.log"; exit 1; }
        say "imported"
    fi
}

arm() {  # name, argument of the experiment, flags
    local name=$1 argument=$2
    shift 2
    launch "$name" --config "$(experiment "$model" "$argument,start=$WORK/runs/start")" --workdir "$WORK/runs/$name" "$@"
    say "$name: $(scores "$name")"
}

play() (  # bm25 or simulator: the arms of this kind, side by side
    while read -r name argument flags; do
        case $argument in *engine=bm25*) kind=bm25 ;; *) kind=simulator ;; esac
        [ "$kind" != "$1" ] || beside arm "$name" "${argument#-}" $flags
    done <<<"$arms_wanted"
    wait
)

tune() {  # gates are measured and do not stop the run: by chance alone 0.47 and 0.51 of useful replies had gold
    launch start --config "$(experiment "$model")" --config.stages=collect,tune_simulator --workdir "$WORK/runs/start" \
        --config.gates.useful=0.0 --config.gates.noisy=1.0 --config.gates.leak=1.0
    say "simulator tuned: $(grep "after tuning" "$WORK/logs/start.log" | tail -n 1)"
}

simulator_arms() {
    tune
    [ "${BASELINES:-1}" = 0 ] || beside baselines
    play simulator
    wait
}

baselines() {  # the warm start, and the untrained model by prompts
    launch start evaluate --config "$(experiment "$model" | sed s/baselines=false/baselines=true/)" --workdir "$WORK/runs/start"
    say "before reinforcement: $(scores start)"
}

both() {  # a function, in whose process the arms with the simulator are, and beside it the arms with BM25
    if [ "${SERIAL:-0}" = 1 ]; then ( "$@" ); else ( "$@" ) & fi
    local simulators=$!
    play bm25
    [ "${SERIAL:-0}" = 1 ] || wait $simulators
    compare
}

compare() {  # each arm with the first
    local first name
    first=$(head -n 1 <<<"$arms_wanted" | cut -d ' ' -f 1)
    for name in $(tail -n +2 <<<"$arms_wanted" | cut -d ' ' -f 1); do
        [ -f "$WORK/runs/$first/evaluation.json" ] && [ -f "$WORK/runs/$name/evaluation.json" ] || continue
        JAX_PLATFORMS=cpu "$python" -m zsjax.launch compare "$WORK/runs/$first" --workdir "$WORK/runs/$name" 2>&1 |
            tee "$WORK/runs/$name/comparison.txt" | head -n 8
    done
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
    begin
    launch start warm-start --config "$(experiment "$model")" --workdir "$WORK/runs/start" || exit 1
    say "warm start: $(grep warm_start "$WORK/logs/start.log" | tail -n 1)"
    both simulator_arms
    say "done"
}

arms() {
    begin
    both play simulator
}

"$1"
exit
