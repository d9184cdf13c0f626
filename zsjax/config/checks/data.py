"""Checks of the questions, the corpora and the tiny world."""

import inspect
import os
import pathlib

from zsjax.config.checks.names import WORLDS


def check_data(found, config):
    for field in ("data.train", "data.eval"):
        _check_source(found, field, (".jsonl", ".jsonl.gz", ".parquet"), tfds=True)
    for field in ("data.corpus", "data.eval_corpus"):
        _check_source(found, field, (".jsonl", ".jsonl.gz", ".parquet"), tfds=False)
    for name in config.data.benchmarks:
        if "." in name or "/" in name:
            found.add("data.benchmarks", f"{name!r} is no name", "give names without '.' and '/'")
            continue
        _check_source(found, f"data.benchmarks.{name}", (".jsonl", ".jsonl.gz", ".parquet"), tfds=True)
    if config.warm_start.episodes and "warm_start" in config.stages:
        _check_source(found, "warm_start.episodes", (".jsonl", ".jsonl.gz"), tfds=False)
    found.at_least(1, "data.eval_limit")
    if config.world:
        _check_world(found, config)


def _check_source(found, field, endings, *, tfds):
    source = str(found.value(field)).partition("#")[0]
    known = f"a path that ends in {', '.join(endings)}, {' or '.join(WORLDS)}" + (", or tfds:NAME" if tfds else "")
    if source in WORLDS or (tfds and source.startswith("tfds:") and len(source) > 5):
        return
    if source.startswith(("tiny_world:", "tfds:")) or not source.endswith(endings):
        found.add(field, "not a source", f"give {known}")
    elif found.files and not pathlib.Path(source).is_file():
        found.add(field, f"no such file (looked in {os.getcwd()})", "check the path")


def _check_world(found, config):
    from zsjax.tiny_world import world

    known = [name for function in (world.resolve, world.make_world)
             for name, parameter in inspect.signature(function).parameters.items()
             if parameter.kind == parameter.KEYWORD_ONLY and name != "taken"]
    for name in config.world:
        if name not in known:
            found.add("world", f"{name!r} is unknown", f"known: {', '.join(known)}")
