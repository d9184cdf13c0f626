r"""Rollouts against an engine on the host (BM25 over the tiny world): CPU and wall time, decode steps, occupancy.

    taskset -c 1 python benchmarks/host_rollout.py [--set rows=32,decode_threshold=0.85,visit_every=16]
        [--latency 0.05] [--rounds 5]

All --set are measured in turns in one run; rows=0,decode_threshold=0.0 is a row for every episode. --latency: seconds
added to each batch of searches, as a server would. Prints a JSON line for each setting, with medians over the rounds.
"""

import argparse
import dataclasses
import json
import statistics
import time

import jax

from zsjax import config
from zsjax.config import load_experiment
from zsjax.rollout import make_rollout
from zsjax.rollout.played import occupancy
from zsjax.run import build


class Late:
    """An engine with some seconds added to every batch."""

    def __init__(self, engine, seconds: float):
        self.engine, self.seconds = engine, seconds

    def search(self, queries, contexts, *, k):
        time.sleep(self.seconds)
        return self.engine.search(queries, contexts, k=k)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--group", type=int, default=8)
    options = parser.parse_args()
    settings = config.resolve(load_experiment("experiments/tiny_world.py:engine=bm25"))
    tokenizer = build.tokenizer(settings)
    model, params = build.model(settings.policy, tokenizer, seed=0, path="asset:tiny_world/policy")
    engine = Late(build.engine("bm25", settings, settings.data.corpus), options.latency)
    questions = build.questions(settings, settings.data.train, options.questions)
    rollouts = {}
    for text in options.set or ["rows=32,decode_threshold=0.85"]:
        fields = {name: float(value) if "." in value else int(value) for name, value in (
            item.split("=") for item in text.split(","))}
        changed = dataclasses.replace(settings, rollout=dataclasses.replace(settings.rollout, **fields))
        rollouts[text] = make_rollout(model, engine, tokenizer, changed, group_size=options.group)
    measured = {text: [] for text in rollouts}
    for turn in range(-1, options.rounds):  # the first compiles
        for text, rollout in rollouts.items():
            wall, cpu = time.perf_counter(), time.process_time()
            played = jax.device_get(rollout.play(params, questions, key=jax.random.key(max(turn, 0))))
            episodes, work = played.episodes, played.work
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= 0:
                share = occupancy(played)["policy"]
                measured[text].append((cpu, wall, int(work.policy_steps.sum()), share, int(episodes.num_searches.sum())))
    for text, rows in measured.items():
        names = ("cpu_seconds", "wall_seconds", "policy_steps", "occupancy", "searches")
        columns = zip(names, zip(*rows, strict=True), strict=True)
        medians = {name: round(statistics.median(column), 4) for name, column in columns}
        print(json.dumps({"set": text, "latency": options.latency, "episodes": options.questions * options.group} | medians))


if __name__ == "__main__":
    main()
