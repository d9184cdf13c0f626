r"""The tiny world's rollout and update in units of a matrix product measured in the same run: are they slower than before?

    python benchmarks/ratios.py               # measures, and compares with ratios.json
    python benchmarks/ratios.py --write       # makes the measurement the baseline; say in the commit what moved it

The process pins itself to one core. Times are its CPU time, which other processes do not lengthen, and the fastest of
`--repeats` steps counts. A ratio holds for one platform (tests/golden_runs.py says what that is): on another one there is
nothing to compare with, and --write makes a baseline of its own beside the others.
"""

import argparse
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
FILE = pathlib.Path(__file__).with_suffix(".json")
MOST = 1.10  # of the baseline's ratio
SIZE, PRODUCTS = 768, 4  # of the yardstick: products of float32 matrices


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from tests.golden_runs import platform_name

    found, name = measure(options.repeats), platform_name()
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    if options.write:
        FILE.write_text(json.dumps(kept | {name: found}, indent=1) + "\n")
    problems = slower(kept.get(name), found)
    print(json.dumps({"platform": name, "found": found, "baseline": kept.get(name), "slower": problems}))
    return int(bool(problems) and not options.write)


def slower(baseline: dict | None, found: dict) -> list[str]:
    """A line for each ratio above MOST times the baseline's; [] without a baseline."""
    return [f"{name}: {found[name]:.2f} yardsticks, {found[name] / before:.2f} times the baseline's {before:.2f}"
            for name, before in (baseline or {}).items() if name in found and found[name] > MOST * before]


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
        played = timed("rollout", lambda: actor.play(policy, settings))  # noqa: B023  (called at once)
        batch = learner.score(state, policy, token_batch(played.episodes, played.scores, row_valid=played.row_valid))
        batch = select(config.train, learner.assign_credit(batch, settings.kl_coef), played)
        state, _ = timed("update", lambda: learner.update(state, batch, settings))  # noqa: B023
        for _ in range(5):
            timed("yardstick", lambda: product(matrix))
        if step == 0:  # compiled here
            times = {name: [] for name in times}
    fastest = {name: min(values) for name, values in times.items()}
    return {name: round(fastest[name] / fastest["yardstick"], 3) for name in ("rollout", "update")}


if __name__ == "__main__":
    sys.exit(main())
