"""Does a rollout cost what its operations and bytes say? Time at 4 x the rows and 4 x the turns against a prediction.

The prediction is that of `floor.Work.in_turn` at the measured speed of the machine, scaled so that the smallest case is
met: how the time grows is predicted, not how fast the machine is used. Called by `benchmarks/rollout.py --cost-growth`.
"""

import json
import pathlib
import statistics

import floor
from scripted import INSTRUCTIONS

BASE, TIMES = (4, 1), 4  # rows, turns
BOUND = 1.3


def cost_growth(config, worker, repeats: int = 3):
    """Prints a JSON line a case and writes cost_growth.svg beside this file."""
    from rollout import fixed

    clock = "cpu_s" if worker.facts["platform"] == "cpu" else "wall_s"
    worker.prepare({"kind": "limits"})
    limits = worker.run()
    machine = limits["flops"], limits["bandwidth"]
    cases = []
    for rows, turns in [BASE, (BASE[0] * TIMES, BASE[1]), (BASE[0], BASE[1] * TIMES), (BASE[0] * TIMES, BASE[1] * TIMES)]:
        w = fixed(rows, turns)
        worker.prepare(w)
        runs = [worker.run() for _ in range(repeats)]
        cases.append({"rows": rows, "turns": turns, "seconds": statistics.median(run[clock] for run in runs),
                      "model_s": floor.rollout(config, w, INSTRUCTIONS).in_turn(*machine),
                      "cpu_share": sum(run["cpu_s"] for run in runs) / sum(run["wall_s"] for run in runs)})
        case = cases[-1]
        case["predicted_s"] = case["model_s"] * cases[0]["seconds"] / cases[0]["model_s"]
        case["of_prediction"] = case["seconds"] / case["predicted_s"]
        case["within"] = 1 / BOUND <= case["of_prediction"] <= BOUND
        print(json.dumps({key: round(x, 3) if isinstance(x, float) else x for key, x in case.items()}), flush=True)
    worker.close()
    plot(cases, pathlib.Path(__file__).with_name("cost_growth.svg"))


def plot(cases, path):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    names = [f"{case['rows']} rows,\n{case['turns']} turn{'s' * (case['turns'] > 1)}" for case in cases]
    at = range(len(cases))
    predicted = [case["predicted_s"] for case in cases]
    axes.bar(at, [case["seconds"] for case in cases], width=0.5, color="#4c72b0", label="measured")
    axes.errorbar(at, predicted, yerr=[[x - x / BOUND for x in predicted], [x * BOUND - x for x in predicted]], fmt="_",
                  color="black", capsize=6, markersize=18, label=f"predicted, within {BOUND} x")
    axes.set_xticks(at, names)
    axes.set_yscale("log")
    axes.set_ylabel("seconds of a rollout")
    axes.legend(frameon=False)
    figure.savefig(path)
