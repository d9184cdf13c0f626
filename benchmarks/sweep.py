r"""The tiny world's table: every variant over several seeds, one run after the other, resumable.

    python benchmarks/sweep.py --workdir runs/sweep --seeds 0 1 2 [--variants curriculum clean ...] [--table]

Per seed the simulator is tuned once (folder simulator-SEED; simulator6-SEED writes 6 documents, for reranking) and shared
by the variants that learn against it. A run that is there already is kept, one that was interrupted goes on; `--table` only
prints the table of what is there, as Markdown: mean over seeds, and the standard error of that mean.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys

# name -> (argument of experiments/tiny_world.py, what the row is called)
VARIANTS = {
    "clean": ("noise=0.0", "simulator, no noise"),
    "curriculum": ("noise=0.5", "simulator, noise 0 -> 0.5"),
    "real": ("engine=bm25", "real engine (BM25)"),
    "untuned": ("noise=0.5,simulator=untuned", "untuned simulator, noise 0 -> 0.5"),
    "prompted": ("noise=0.5,simulator=prompted", "prompted simulator, noise 0 -> 0.5"),
    "inverted": ("noise=0.0,invert_mask", "simulator, loss mask inverted"),
    "empty": ("engine=empty", "empty documents"),
    # The algorithms, each with the curriculum (GRPO's row is "curriculum").
    "reinforce": ("noise=0.5,algorithm=reinforce", "simulator, REINFORCE"),
    "rloo": ("noise=0.5,algorithm=rloo", "simulator, RLOO"),
    "ppo": ("noise=0.5,algorithm=ppo", "simulator, PPO"),
    "grpo": ("noise=0.5,algorithm=grpo", "simulator, GRPO"),
    "rloo_long": ("noise=0.5,algorithm=rloo,steps=180", "simulator, RLOO, three times as long"),
    "grpo_long": ("noise=0.5,algorithm=grpo,steps=180", "simulator, GRPO, three times as long"),
    # Reranking by reward: 3 of 6 documents are shown, beside the same simulator's first 3 of 6 ("curriculum" writes 3).
    "rerank": ("noise=0.5,rerank=6", "simulator, noise 0 -> 0.5, 3 of 6 by reward"),
    "first": ("noise=0.5,rerank=6,rerank_rate=0.0", "simulator, noise 0 -> 0.5, first 3 of 6"),
    "real_rerank": ("engine=bm25,rerank=6", "real engine (BM25), 3 of 6 by reward"),
}
DEFAULT = ("clean", "curriculum", "real", "inverted", "empty")  # the others are asked for by name


def run(arg: str, workdir: pathlib.Path, *overrides: str):
    """One launcher run in a process of its own; its output goes to WORKDIR/log.txt."""
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "zsjax.launch", "--config", f"experiments/tiny_world.py:{arg}", "--workdir",
               str(workdir), *overrides]
    with open(workdir / "log.txt", "a") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)


def sweep(workdir: pathlib.Path, seeds, variants, extra):
    for seed in seeds:
        for variant in variants:
            arg, title = VARIANTS[variant]
            name, tuning = ("simulator6", "rerank=6,") if "rerank=6" in arg else ("simulator", "")
            tuned = workdir / f"{name}-{seed}" / "models" / "simulator"
            folder, overrides = workdir / f"{variant}-{seed}", list(extra)
            if (folder / "report.html").exists():
                continue
            if title.startswith("simulator"):  # the tuned one
                if not tuned.exists():
                    print(f"seed {seed}: tuning the simulator", flush=True)
                    run(f"{tuning}seed={seed}", tuned.parents[1], "--config.stages=collect,tune_simulator", *extra)
                overrides.append(f"--config.simulator.init={tuned.resolve()}")
            print(f"seed {seed}: {title}", flush=True)
            run(f"seed={seed},{arg}", folder, "--config.stages=train,evaluate,report", *overrides)


def rows(workdir: pathlib.Path):
    """{(variant, row of the evaluation, hops): [row per seed]}."""
    found = {}
    for variant in VARIANTS:
        for path in sorted(workdir.glob(f"{variant}-*/evaluation.json")):
            for row in json.loads(path.read_text()):
                found.setdefault((variant, row["name"], row["hops"]), []).append(row)
    return found


def mean_and_error(values):
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), error


def cell(found, key, score="em"):
    values = [row[score] for row in found.get(key, [])]
    if not values:
        return "-"
    mean, error = mean_and_error(values)
    return f"{mean:.2f} ± {error:.2f}" if len(values) > 1 else f"{mean:.2f}"


def table(workdir: pathlib.Path) -> str:
    found = rows(workdir)
    lossy = sorted({name for _, name, _ in found if name.startswith("after") and "lost" in name})
    header = ["trained with", "seeds", "EM, 1 hop", "EM, 2 hops", "searches, 1/2 hops"]
    header += [f"EM {name.removeprefix('after training, ')}, 1/2 hops" for name in lossy]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]

    def line(title, variant, name, lossy_names):
        seeds = len(found.get((variant, name, 1), []))
        if not seeds:
            return
        cells = [title, str(seeds), cell(found, (variant, name, 1)), cell(found, (variant, name, 2)),
                 " / ".join(cell(found, (variant, name, hops), "searches") for hops in (1, 2))]
        cells += [" / ".join(cell(found, (variant, other, hops)) for hops in (1, 2)) for other in lossy_names]
        lines.append("| " + " | ".join(cells) + " |")

    first = next((variant for variant in VARIANTS if (variant, "before training", 1) in found), None)
    if first:
        line("(a random retrieved document)", first, "random retrieved document", ["-"] * len(lossy))
        line("(the base, before)", first, "before training", [name.replace("after", "before") for name in lossy])
    for variant, (_, title) in VARIANTS.items():
        line(title, variant, "after training", lossy)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(DEFAULT), choices=list(VARIANTS))
    parser.add_argument("--table", action="store_true")
    options, extra = parser.parse_known_args()
    if not options.table:
        sweep(options.workdir, options.seeds, options.variants, extra)
    print(table(options.workdir))
