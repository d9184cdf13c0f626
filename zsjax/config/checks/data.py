"""Checks of the questions, the corpora and the tiny world."""

import inspect
import os

from zsjax.config.allowed import path_problem
from zsjax.config.read import known_name

WORLDS = ("tiny_world:train", "tiny_world:eval")
_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


def check_data(found, config):
    for field in ("data.train", "data.eval", "data.corpus", "data.eval_corpus"):
        _check_source(found, field, found.value(field), tfds="corpus" not in field)
    for name, source in config.data.benchmarks.items():
        if not name or "." in name or "/" in name:
            found.add("data.benchmarks", f"{name!r} cannot be the name of a folder", "give names without '.' and '/'")
        elif not isinstance(source, str):
            found.add("data.benchmarks", f"the source of {name!r} is {source!r}", "give texts, as {'nq': 'nq.jsonl'}")
        else:
            _check_source(found, f"data.benchmarks.{name}", source, tfds=True)
    if config.warm_start.episodes and "warm_start" in config.stages:
        _check_source(found, "warm_start.episodes", config.warm_start.episodes, tfds=False)
    _check_world(found, config.world)


def _check_source(found, field, text, *, tfds):
    source, split, _ = text.partition("#")
    if split and source in WORLDS:
        found.add(field, "the tiny world has no splits", f"give {source}")
    elif source in WORLDS or (tfds and source.startswith("tfds:") and len(source) > 5):
        return
    elif wrong := path_problem(source):
        found.add(field, *wrong)
    elif source.startswith(("tiny_world:", "tfds:")) or not source.endswith(_ENDINGS):
        known = f"a path that ends in {', '.join(_ENDINGS)}, {' or '.join(WORLDS)}" + ", or tfds:NAME" * tfds
        found.add(field, "not a source", f"give {known}")
    elif found.must_exist(field) and not os.path.isfile(source):
        found.add(field, f"no such file (looked in {os.getcwd()})", "check the path")
    elif found.must_exist(field) and not os.path.getsize(source):
        found.add(field, "the file is empty", "give one with rows")


def _check_world(found, options):
    """Options of the tiny world: known ones, of the kind of their defaults, not below 0; shares up to 1."""
    if not options:
        return
    from zsjax.tiny_world import world

    known = {name: parameter.default for function in (world.worlds_of, world.make_world)
             for name, parameter in inspect.signature(function).parameters.items()
             if parameter.kind == parameter.KEYWORD_ONLY and name != "taken"}
    for name, value in options.items():
        if name not in known:
            found.add("world", f"{name!r} is unknown", known_name(name, known))
        elif isinstance(known[name], bool):
            if type(value) is not bool:
                found.add("world", f"{name} = {value!r} is neither True nor False", "give one of them")
        elif isinstance(known[name], int) and not (type(value) is int and (known[name] > 0) <= value <= 100_000):
            found.add("world", f"{name} = {value!r} is not a count",
                      f"give a whole number, {int(known[name] > 0)} to 100,000")
        elif isinstance(known[name], float) and not (type(value) in (int, float) and 0 <= value <= 1):
            found.add("world", f"{name} = {value!r} is not a share", "give 0 to 1")
