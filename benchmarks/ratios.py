r"""The tiny world's rollout and update in units of a matrix product measured in the same run: are they slower than before?

    python benchmarks/ratios.py               # measures, and compares with ratios.json
    python benchmarks/ratios.py --write       # makes the measurement the baseline; say in the commit what moved it

Each of `--runs` processes pins itself to one core. Times are its CPU time, which other processes hardly lengthen, and the
fastest of `--repeats` steps counts; of the runs, the fastest. A baseline whose runs are a tenth apart is not written: it
could not show a tenth. A ratio holds for one platform (tests/golden_runs.py says what that is): on another one there is
nothing to compare with, and --write makes a baseline of its own beside the others.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
FILE = pathlib.Path(__file__).with_suffix(".json")
MOST = 1.10  # of the baseline's ratio, and of a run's ratio over the fastest run's
SIZE, PRODUCTS = 768, 4  # of the yardstick: products of float32 matrices


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if options.runs == 0:  # one of the processes
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps(measure(options.repeats)))
        return 0
    from tests.golden_runs import platform_name

    one = [sys.executable, __file__, "--runs", "0", "--repeats", str(options.repeats)]
    runs = [json.loads(subprocess.run(one, check=True, text=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            for _ in range(options.runs)]
    found, name = {part: sorted(run[part] for run in runs) for part in runs[0]}, platform_name()
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    problems = apart(found) if options.write else slower(kept.get(name), found)
    if options.write and not problems:
        FILE.write_text(json.dumps(kept | {name: found}, indent=1) + "\n")
    print(json.dumps({"platform": name, "found": found, "baseline": kept.get(name), "problems": problems}))
    return int(bool(problems))


def slower(baseline: dict[str, list] | None, found: dict[str, list]) -> list[str]:
    """A line for each part whose fastest run is above MOST times the baseline's; [] without a baseline."""
    fastest = {name: (min(found[name]), min(before)) for name, before in (baseline or {}).items() if name in found}
    return [f"{name}: {now:.2f} yardsticks, {now / before:.2f} times the baseline's {before:.2f}"
            for name, (now, before) in fastest.items() if now > MOST * before]


def apart(found: dict[str, list]) -> list[str]:
    """A line for each part whose runs are too far apart for a baseline."""
    return [f"{name}: runs of {min(runs):.2f} to {max(runs):.2f} yardsticks are too far apart for a baseline; measure on an "
            "idle machine" for name, runs in found.items() if max(runs) > MOST * min(runs)]


def measure(repeats: int) -> dict[str, float]:
    """{"rollout", "update": CPU time over the yardstick's}, each the fastest of `repeats` after the first."""
    import jax
    import jax.numpy as jnp

    from zsjax import train
    from zsjax.config import resolve
    from zsjax.config.experiments import load_experiment
    from zsjax.data import QuestionStream
    from zsjax.parallel.mesh import make_mesh
    from zsjax.rl.batch import token_batch
    from zsjax.rl.learner import Learner
    from zsjax.rl.selection import select
    from zsjax.rl.steering import Steering
    from zsjax.rollout.actor import Actor
    from zsjax.run import build

    config = resolve(load_experiment(str(ROOT / "experiments/tiny_world.py:simulator=untuned")))
    tokenizer = build.tokenizer(config)
    model, params = build.model(config.policy, tokenizer, seed=0)
    simulator = build.simulator(config, *build.model(config.simulator, tokenizer, seed=1), tokenizer)
    mesh = make_mesh(config.mesh)
    stream = QuestionStream(build.questions(config, config.data.train), config.seed)
    setup = train.Setup(config, model, params, tokenizer, simulator, stream, mesh=mesh)
    learner = Learner(config, model, mesh)
    actor = Actor(config, train.metered_rollout(setup, mesh), stream, tokenizer)
    steering = Steering(config, mesh, engine=simulator)
    state = steering.start(learner.start(params))
    matrix = jnp.ones((SIZE, SIZE)) / SIZE
    product = jax.jit(lambda x: jax.lax.fori_loop(0, PRODUCTS, lambda _, y: y @ x, x))
    times: dict[str, list[float]] = {"yardstick": [], "rollout": [], "update": []}

    def timed(name, function):
        begun = time.process_time()
        result = jax.block_until_ready(function())
        times[name].append(time.process_time() - begun)
        return result

    for step in range(1 + repeats):
        settings = steering.at(0, state)  # the same questions and keys in every repeat
        policy = learner.policy(state)
        experience = timed("rollout", lambda: actor.play(policy, settings))  # noqa: B023  (called at once)
        batch = token_batch(experience.episodes, experience.scores, row_valid=experience.row_valid)
        batch = learner.score(state, policy, batch)
        batch = select(config.train, learner.assign_credit(batch, settings.kl_coef), experience)
        state, _ = timed("update", lambda: learner.update(state, batch, settings))  # noqa: B023
        for _ in range(5):
            timed("yardstick", lambda: product(matrix))
        if step == 0:  # compiled here
            times = {name: [] for name in times}
    fastest = {name: min(values) for name, values in times.items()}
    return {name: round(fastest[name] / fastest["yardstick"], 3) for name in ("rollout", "update")}


if __name__ == "__main__":
    sys.exit(main())
