"""Decoding and rollouts compared with transformers and tunix, in turns in one run.

    taskset -c 0 python benchmarks/rollout.py [--workloads decode fixed realistic] [--tunix-python VENV/bin/python]
    taskset -c 0 python benchmarks/rollout.py --shape 0.5b --batches 1 8 --new 32 --who zsjax-f32 torch-f32-mkl
    taskset -c 0 python benchmarks/rollout.py --cost-growth

decode     a prompt of 128 tokens, 128 new (--prompt, --new), sampled at temperature 1, no stop.
fixed      3 turns of 64 tokens of the policy and 96 of the simulator, from a prompt of 200; 16 rows. Ours is the compiled
           rollout of training with scripted tags (scripted.py). A peer calls generate for every turn on the whole context.
realistic  lengths of lengths.json. Tags stop ours, and --episodes are played in --rows rows, which are refilled. The peer
           follows the reference's protocol: no stop strings, cut after 500 tokens, the whole context prefilled every
           turn, with the lengths of our run (peers/torch_worker.py), --peer-rows episodes at a time.

Who: zsjax-f32, zsjax-bf16, torch-f32 and torch-bf16 (transformers' generate), torch-f32-mkl (with a preload that makes MKL
treat an AMD CPU as an Intel one, which doubles float32 there: a fairer peer than a user has), each torch also -static (the
static cache), and tunix-f32, tunix-bf16. Those whose libraries are missing are left out with a message. tunix would
downgrade transformers, so it needs an environment of its own:

    python -m venv V && V/bin/pip install jax flax optax orbax-checkpoint transformers safetensors qwix jaxtyping numba \\
        google_metrax clu kagglehub kagglesdk omegaconf tenacity python-dotenv hf_transfer tensorboardX perfetto \\
        pylatexenc importlib_resources pillow grain datasets && V/bin/pip install --no-deps google-tunix

Each is a process of its own, and they run in turns. On CPU all run on one thread (pin it), and times are the process's
CPU time, which other processes on the core do not lengthen; cpu_share is the share of the core that they left. On a GPU
times are wall time. Prints a JSON line for each measurement and one table of medians. `of floor` is (time of the
operations and bytes of floor.py, at the speed of matrix products and memory measured in the same run) / (time taken).
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
from turns import Worker, WorkerFailed

from zsjax.models import DecoderConfig, init_params, save_hf
from zsjax.models.families import PRESETS

HERE = pathlib.Path(__file__).parent
SMALL = DecoderConfig(vocab_size=8192, embed_dim=512, num_layers=8, num_heads=8, num_kv_heads=2, head_dim=64, mlp_dim=1408,
                      rope_theta=1e6)
SHAPES = {"small": SMALL, "0.5b": PRESETS["Qwen2.5-0.5B"], "1.5b": PRESETS["Qwen2.5-1.5B"], "3b": PRESETS["Qwen2.5-3B"],
          "0.6b": PRESETS["Qwen3-0.6B"],
          "toy": DecoderConfig(vocab_size=512, embed_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
                               mlp_dim=128, rope_theta=1e6)}
WHO = ("zsjax-f32", "zsjax-bf16", "torch-f32", "torch-f32-static", "torch-f32-mkl", "torch-f32-mkl-static", "torch-bf16",
       "torch-bf16-static", "tunix-f32", "tunix-bf16")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--workloads", nargs="*", default=["decode", "fixed", "realistic"],
                        choices=["decode", "fixed", "realistic"])
    parser.add_argument("--who", nargs="*", default=WHO, choices=WHO, help="the first one is what others are compared with")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32], help="of decode")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rows", type=int, default=16, help="of the rollouts")
    parser.add_argument("--episodes", type=int, default=64, help="of the realistic rollout")
    parser.add_argument("--slots", type=int, default=8, help="requests that the realistic rollout writes at a time")
    parser.add_argument("--peer-rows", type=int, help="of the realistic rollout; as many as --rows if left out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tunix-python", help="the interpreter of an environment with tunix")
    parser.add_argument("--cost-growth", action="store_true", help="time at 4 x the rows and turns against the prediction")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # of this process: it only writes the checkpoint
    with tempfile.TemporaryDirectory() as temporary:
        config = dataclasses.replace(SHAPES[options.shape], dtype="float32")
        stored = "float32" if any("f32" in name for name in options.who) else "bfloat16"
        checkpoint = save_hf(pathlib.Path(temporary) / "model", config, init_params(config, jax.random.key(0), stored))
        if options.cost_growth:
            from cost_growth import cost_growth

            return cost_growth(config, start("zsjax-f32", checkpoint, options, temporary))
        workers = start_all(options, checkpoint, temporary)
        try:
            table(measure(options, config, workers))
        finally:
            for worker in workers.values():
                worker.close()


def start(name, checkpoint, options, temporary) -> Worker:
    """Raises WorkerFailed where it cannot run."""
    library, kind, *more = name.split("-")
    facts = {"checkpoint": str(checkpoint), "dtype": {"f32": "float32", "bf16": "bfloat16"}[kind],
            "cache": "static" if "static" in more else "eager"}
    python, env = sys.executable, None
    if library == "tunix":
        if options.tunix_python is None:
            raise WorkerFailed("tunix: no --tunix-python given")
        python = options.tunix_python
    if "mkl" in more:
        env = {"LD_PRELOAD": preload(temporary)}
    return Worker(name, HERE / "peers" / f"{library}_worker.py", facts, python=python, env=env)


def preload(folder) -> str:
    """A library of one function, by which MKL asks whether the CPU is Intel's."""
    if not shutil.which("gcc"):
        raise WorkerFailed("no gcc for MKL's preload")
    source, library = pathlib.Path(folder) / "mkl.c", pathlib.Path(folder) / "mkl.so"
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


def start_all(options, checkpoint, temporary) -> dict[str, Worker]:
    workers = {}
    for name in options.who:
        on_gpu = any(worker.facts.get("platform", "cpu") != "cpu" for worker in workers.values())
        if on_gpu and "mkl" in name:
            continue
        try:
            workers[name] = start(name, checkpoint, options, temporary)
            print(json.dumps({"who": name, **workers[name].facts}), flush=True)
        except WorkerFailed as error:
            print(f"left out: {error}", file=sys.stderr)
    return workers


def workloads(options, config):
    """[(name, workload)]"""
    made = []
    for kind in options.workloads:
        if kind == "decode":
            made += [(f"decode, batch {batch}",
                      {"kind": "decode", "batch": batch, "prompt": options.prompt, "new": options.new})
                     for batch in options.batches]
        elif kind == "fixed":
            made.append((f"fixed rollout, {options.rows} rows", fixed(options.rows, 3)))
        else:
            lengths = json.loads((HERE / "lengths.json").read_text())
            made.append((f"realistic rollout, {options.episodes} episodes, {options.rows} rows", {
                "kind": "realistic", "batch": options.episodes, "rows": options.rows, "slots": options.slots,
                "decode_threshold": 0.5, "peer_rows": options.peer_rows or options.rows, "group": 4, "prompt": 160,
                "turns": 4, "turn_tokens": 500, "documents": 5, "document_tokens": 64, "simulator_prompt": 260,
                "max_tokens": 2304, "prefill_batch": 4, **{
                    name: lengths[name] for name in ("turn_lengths", "answer_share", "line_tokens")}}))
    return made


def fixed(rows: int, turns: int) -> dict:
    w = {"kind": "fixed", "batch": rows, "turns": turns, "prompt": 128, "turn_tokens": 64, "document_tokens": 96,
         "simulator_prompt": 200}
    return {**w, "max_tokens": w["prompt"] + turns * (w["turn_tokens"] + w["document_tokens"])}


def knows(name: str, kind: str) -> bool:
    return not (name.startswith("tunix") and kind == "realistic")


def measure(options, config, workers) -> list[dict]:
    """Rows of the table."""
    ours = [name for name in workers if name.startswith("zsjax")]
    machine = {}
    for name in ours:
        workers[name].prepare({"kind": "limits"})
        found = workers[name].run()
        machine[name] = found["flops"], found["bandwidth"]
        print(json.dumps({"who": name, "gflops": round(found["flops"] / 1e9, 1),
                          "gb_per_s": round(found["bandwidth"] / 1e9, 1)}), flush=True)
    cpu = all(workers[name].facts["platform"] == "cpu" for name in ours)
    clock = "cpu_s" if cpu else "wall_s"
    rows = []
    for title, w in workloads(options, config):
        taking_part = {name: worker for name, worker in workers.items() if knows(name, w["kind"])}
        prefill = {}
        if w["kind"] == "decode":
            # Its own time to the first token, to tell prefill from decoding. It is not in turns with what follows: where
            # the load of the core changes between the two, the shares of the floor are off, the ratios are not.
            for name in ours:
                workers[name].prepare({**w, "new": 1})
                prefill[name] = statistics.median(workers[name].run()[clock] for _ in range(options.repeats))
        found = {}
        for name, worker in list(taking_part.items()):
            first = worker.prepare(w)
            print(json.dumps({"workload": title, "who": name, "first_s": round(first[clock], 2)}), flush=True)
            if w["kind"] == "realistic" and name in ours and "trajectories" not in w:
                w = {**w, "trajectories": worker.run()["trajectories"]}
        for _ in range(options.repeats):
            for name, worker in taking_part.items():
                run = worker.run()
                run.pop("trajectories", None)
                found.setdefault(name, []).append(run)
                print(json.dumps({"workload": title, "who": name, **{
                    key: round(x, 4) if isinstance(x, float) else x for key, x in run.items()}}), flush=True)
        for name, runs in found.items():
            # Rates, because two of ours may draw different lengths where a script is realistic.
            seconds = statistics.median(run[clock] for run in runs)
            rate = runs[0]["tokens"] / seconds
            row = {"workload": title, "who": name, "seconds": seconds, "rate": rate,
                   "share": sum(run["cpu_s"] for run in runs) / sum(run["wall_s"] for run in runs),
                   "peak_mb": runs[-1]["peak_mb"]}
            if name in ours:
                shape = dataclasses.replace(config, dtype={"f32": "float32", "bf16": "bfloat16"}[name.split("-")[1]])
                row["of_floor"] = of_floor(shape, w, machine[name], seconds, prefill.get(name))
            rows.append(row)
    return rows


def of_floor(shape, w, machine, seconds, prefill) -> str:
    """The share of the time that the machine's limits explain. prefill: seconds to the first token, of kind "decode"."""
    import floor
    from scripted import INSTRUCTIONS

    if w["kind"] == "decode":
        read = floor.reading(shape, w["batch"], w["prompt"]).floor(*machine)
        write = floor.writing(shape, w["batch"], w["new"] - 1, w["prompt"]).floor(*machine)
        return f"prefill {read / prefill:.0%}, decode {write / (seconds - prefill):.0%}"
    return f"{floor.rollout(shape, w, INSTRUCTIONS).floor(*machine) / seconds:.0%}" if w["kind"] == "fixed" else ""


def table(rows):
    print("\n| workload | who | s | tokens/s | cpu share | peak MB | zsjax-f32 is | zsjax-bf16 is | of floor |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rates = {(row["workload"], row["who"]): row["rate"] for row in rows}
    for row in rows:
        ratios = []
        for mine in ("zsjax-f32", "zsjax-bf16"):
            rate = rates.get((row["workload"], mine))
            ratios.append(f"{rate / row['rate']:.2f} x" if rate and row["who"] != mine else "")
        print(f"| {row['workload']} | {row['who']} | {row['seconds']:.2f} | {row['rate']:.1f} | {row['share']:.2f} | "
              f"{row['peak_mb']} | {ratios[0]} | {ratios[1]} | {row.get('of_floor', '')} |", flush=True)


if __name__ == "__main__":
    main()
