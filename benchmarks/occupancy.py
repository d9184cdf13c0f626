r"""Occupancy and speed of the tiny world's rollouts: lockstep compared with the continuous loop.

    taskset -c 1 python benchmarks/occupancy.py [--policy asset:tiny_world/base] [--simulator asset:tiny_world/simulator]
        [--setting rows=16,simulator_slots=4,prefill_batch=4,decode_threshold=0.85 ...]
        [--steps 2] [--repeats 3] [--noise 0.25]

A step is the default one: 12 questions x 8 episodes. All settings play the same steps in turns, after one round that
compiles. "lockstep R" plays R episodes at a time to their end, with R the last setting's rows and all: all rows think,
then all searches are answered. All trajectories are compared. tokens/s count all tokens of the episodes except prompts.
"saved" is the share of requests that the reply to an equal one answered, and "distinct" the share of different requests
counted from the episodes. Prints a JSON line for each setting, then the table.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np

from experiments.tiny_world import get_config
from zsjax import types
from zsjax.config import resolve
from zsjax.data import QuestionStream
from zsjax.rollout import make_rollout
from zsjax.rollout.played import occupancy
from zsjax.run import build

OLD = "rows=32,simulator_slots=8,prefill_batch=8,decode_threshold=0.85"
COLUMNS = ("setting", "policy", "simulator", "policy_steps", "simulator_steps", "saved", "tokens_per_cpu_second",
           "tokens_per_second", "trajectories")


def read_setting(text: str) -> dict:
    pairs = [pair.split("=") for pair in text.split(",")]
    return {name: float(value) if name == "decode_threshold" else int(value) for name, value in pairs}


def player(context, setting: dict, lockstep: bool):
    """A function step -> Played, the counts of all its programs side by side."""
    config = context["config"]
    options = {**setting, "rows": 0, "simulator_slots": 0, "decode_threshold": 0.0} if lockstep else setting
    own = resolve(config_dict({f"rollout.{name}": value for name, value in options.items()}))
    group = config.train.group_size
    rollout = make_rollout(context["policy_config"], context["simulator"], context["tokenizer"], own, group_size=group)
    count = config.train.questions_per_step
    at_once = setting["rows"] // group if lockstep else count

    def play(step):
        questions = context["stream"].batch(step, count)
        parts = [jax.device_get(rollout.play(
            context["params"], questions[i:i + at_once], noise=context["noise"],
            group_ids=np.arange(count, dtype=np.int32)[i:i + at_once], key=jax.random.key(step)))
            for i in range(0, count, at_once)]
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    return play


def config_dict(changes):
    c = get_config()
    for name, value in changes.items():
        room, field = name.split(".")
        c[room][field] = value
    return c


def distinct(episodes) -> float:
    """The share of the searches that no earlier one equals: question, query's tokens, modes."""
    group = episodes.group_id
    names = [(int(group[b]), episodes.tokens[b, start:stop].tobytes(), episodes.noisy[b, turn].tobytes())
             for b in range(len(group)) for turn, (start, stop) in enumerate(episodes.query_span[b]) if stop]
    return len(set(names)) / len(names)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="asset:tiny_world/base")
    parser.add_argument("--simulator", default="asset:tiny_world/simulator")
    parser.add_argument("--setting", action="append", help="of rollout.*; by default the old and the new ones")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--noise", type=float, default=0.25)
    options = parser.parse_args()

    config = resolve(get_config())
    tokenizer = build.tokenizer(config)

    def load(model, path):
        return build.model(model, tokenizer, seed=0, path=build.asset_path(path))

    policy_config, params = load(config.policy, options.policy)
    context = dict(config=config, tokenizer=tokenizer, policy_config=policy_config, params=params, noise=options.noise,
                   simulator=build.simulator(config, *load(config.simulator, options.simulator), tokenizer),
                   stream=QuestionStream(build.questions(config, config.data.train), config.seed))
    names = "rows", "simulator_slots", "prefill_batch", "decode_threshold"
    default = {name: getattr(config.rollout, name) for name in names}
    settings = [read_setting(text) for text in options.setting or [OLD]] + [default] * (not options.setting)
    all_at_once = {**settings[-1], "rows": config.train.questions_per_step * config.train.group_size}
    players = {f"lockstep {setting['rows']}": player(context, setting, True) for setting in (settings[-1], all_at_once)}
    players |= {", ".join(f"{n} {v}" for n, v in setting.items()): player(context, setting, False) for setting in settings}

    measured = {name: {"cpu": [], "wall": [], "played": {}} for name in players}
    for repeat in range(options.repeats + 1):
        for step in range(options.steps):
            for name, play in players.items():
                wall, cpu = time.perf_counter(), time.process_time()
                measured[name]["played"][step] = play(step)
                if repeat:  # the first one compiles
                    measured[name]["wall"].append(time.perf_counter() - wall)
                    measured[name]["cpu"].append(time.process_time() - cpu)

    table, expected = [], next(iter(measured.values()))["played"]
    for name, one in measured.items():
        played = list(one["played"].values())
        whole = jax.tree.map(lambda *x: np.concatenate(x), *played)
        episodes, work = whole.episodes, whole.work
        tokens = int(np.isin(episodes.roles, (types.POLICY, types.DOCUMENT, types.TEMPLATE)).sum()) / len(played)
        pairs = zip(played, expected.values(), strict=True)
        same = all(np.array_equal(a.episodes.tokens, b.episodes.tokens) for a, b in pairs)
        asked, simulated = (getattr(work, field, None) for field in ("requests", "simulated"))
        line = {"setting": name, **{k: rounded(v) for k, v in occupancy(whole).items()},
                "policy_steps": int(np.sum(work.policy_steps)), "simulator_steps": int(np.sum(work.simulator_steps)),
                "saved": rounded(1 - np.sum(simulated) / np.sum(asked)) if asked is not None else None,
                "tokens_per_cpu_second": round(tokens / statistics.median(one["cpu"])),
                "tokens_per_second": round(tokens / statistics.median(one["wall"])),
                "trajectories": "equal" if same else "differ", "distinct": rounded(distinct(episodes)),
                "searches": int(episodes.num_searches.sum()), "length": rounded(episodes.length.mean(), 1)}
        print(json.dumps(line), flush=True)
        table.append(line)
    print("\n| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for line in table:
        print("| " + " | ".join(str(line[column]) for column in COLUMNS) + " |")


def rounded(x, digits: int = 3):
    return round(float(x), digits)


if __name__ == "__main__":
    main()
