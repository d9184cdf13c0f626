"""Generated configs and command lines: each ends in a `Config` or in a `ConfigError` that names its fields."""

import math
import random
import time

from zsjax.config import Config, ConfigError, from_json, load_experiment, resolve, to_json
from zsjax.config.declare import leaves

FIELDS = leaves(Config)
TEXTS = (
    "", "0", "-1", "7", "64", "0.5", "1e-3", "nan", "inf", "1e400", "9" * 30, "9" * 5000, "true", "None", "0x10", "1_000",
    "-0", "[", "[" * 3000, "{}", "()", "[1]", "{'a': 1}", "{'a': nan}", "{'a': {'b': [1, {'c': None}]}}", "{1: 2}",
    "b''", "...",
    "[{'name': 'adam'}]", "[{'name': 'scale_by_adam', 'b1': 2}]", "[{'name': 3}]", "[{}]", "a,b", "'x'", "gs://b/x.jsonl",
    "hf:a", "hf:a/b", "asset:", "asset:../..", "asset:real/policy", "json:loads", "json:nix", "nix:nix", ":", "a:", ":a",
    "\0",
    "\ud800", "ä" * 300, "/", "/dev/null", "..", "x" * 5000, "{text}", "{i}{title}", "{text:>99999999999}", "{0}", "1+2j",
    "http://", "http://h:99999", "http://h:1", "True", "float32", "train,evaluate", "tiny_world:train", "tfds:", "q.jsonl#",
    "{'entropy': [0.1, None]}", "{'f1': 1, 'em': -1}")
VALUES = (None, True, 0, -1, 1.5, math.nan, math.inf, 10**400, "x", "", [], {}, [1], {"a": 1}, {1: 2}, (1,), set(), b"x",
          object(), len, [[]], {"a": {"b": math.nan}}, [{"name": "adam"}], [None],
          [[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]])
ODD_NAMES = ("", "x", ".", "train", "train.", "train.steps.x", "reward.terms.f1", "health.alarms.entropy", "a.b.c",
             "policy.shape.num_layers", "data.benchmarks.nq", "optimizer.chain.0.name", "value.optimizer")


def a_text(rng, leaf=None) -> str:
    draw = rng.random()
    if leaf is not None and draw < 0.3:  # what it may well hold
        low, high = (leaf.spec.range.low, leaf.spec.range.high) if leaf.spec.range else (0, 9)
        likely = [leaf.default, rng.uniform(low, min(high, 9)), int(rng.uniform(low, min(high, 9))), *leaf.spec.known()]
        return str(rng.choice(likely))
    if draw < 0.7:
        return rng.choice(TEXTS)
    return "".join(rng.choice("[]{}()'\",:. 01aeE-+\\\nxn") for _ in range(rng.randint(0, 15)))


def a_tree(rng) -> dict:
    tree: dict = {}
    for name in rng.sample(sorted(FIELDS), 2):
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = rng.choice(VALUES)
    return tree


def test_generated_configs(generated_cases):
    bases = [load_experiment(f"experiments/{name}.py:smoke") for name in ("tiny_world", "real_questions")]
    read = 0
    for seed in range(generated_cases):
        rng = random.Random(seed)
        names = [rng.choice(ODD_NAMES if rng.random() < 0.15 else sorted(FIELDS)) for _ in range(rng.randint(1, 2))]
        overrides = {name: a_text(rng, FIELDS.get(name)) for name in names}
        base = a_tree(rng) if rng.random() < 0.3 else rng.choice(bases)
        start = time.monotonic()
        try:
            config = resolve(base, overrides, files=rng.random() < 0.5)
        except ConfigError as error:
            assert error.problems and len(str(error).splitlines()) == 1 + len(error.problems), (seed, overrides)
            assert all(isinstance(problem.field, str) and problem.fix for problem in error.problems), seed
        else:
            read += 1
            assert from_json(to_json(config)) == config, (seed, overrides)
            for name, leaf in FIELDS.items():
                value = config
                for part in name.split("."):
                    value = getattr(value, part)
                if leaf.spec.range:
                    items = value if isinstance(value, tuple) else (value,)
                    assert all(item is None or item in leaf.spec.range for item in items), (seed, name, value)
        assert time.monotonic() - start < 20, (seed, overrides)
    assert generated_cases / 20 < read < generated_cases * 9 / 10
