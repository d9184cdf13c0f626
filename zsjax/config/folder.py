"""The config in a run's folder: config.json is written, and later configs are compared with it.

Each field's effect (`zsjax.config.declare.EFFECTS`) says what a change does:

    computes   refused: what the folder holds was computed with the old value
    limit      accepted where it is raised: rows that were within it stay the same
    how        accepted; where the last bits of results may differ, a line says so
    later      accepted: evaluations and the report are made again
    stages     accepted, unless a stage before training comes too late for what was made without it, or goes unfinished

A field of engines that the run neither trains nor collects with counts as "later". A field that an older config.json
lacks counts as its default. A renamed field is read under its old name. A field that no longer exists is ignored, and
the log says so. A run that ended before it
computed anything allows every change: its config.json is removed, so that a reported mistake can be corrected in place.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
from typing import Any

from zsjax.config.declare import leaves, renamed
from zsjax.config.fields import Config
from zsjax.config.read import flatten, read_tree, to_json
from zsjax.errors import ConfigError, InputError, OutputError, Problem, UserError, json_value, reason_of
from zsjax.parallel.files import write_text

# What a stage leaves in the folder, its finished result first.
_RESULTS = {
    "pretrain": ("models/base",), "pretrain_simulator": ("models/simulator_base",),
    "warm_start": ("models/warm_start", "checkpoints/warm_start"), "collect": ("searches.jsonl",),
    "tune_simulator": ("models/simulator", "checkpoints/tune_simulator"), "train": ("models/policy", "checkpoints/train")}
# Files that stages leave.
_FILES = ("episodes.jsonl", "searches.jsonl", "evaluation.json", "gates.json", "metrics.jsonl")
# The stages that begin with a stage's result.
_USED_BY = {"pretrain": ("warm_start", "collect", "train"), "pretrain_simulator": ("tune_simulator", "train"),
            "warm_start": ("collect", "train"), "collect": ("tune_simulator",), "tune_simulator": ("train",)}


def from_json(text: str) -> Config:
    """The config that this or another version's `to_json` wrote. Values are not checked: files may have moved.

    Raises:
      InputError: the text is not JSON of a config, or a field has the wrong type.
    """
    config, unknown = _read(text)
    for name, value in unknown.items():
        logging.info("%s = %.200r is ignored: a field of another version", " ".join(name.split())[:200], value)
    return config


def diff(old: Config | str, new: Config) -> dict[str, tuple[Any, Any]]:
    """{dotted field: (old value, new value)} where they differ; `old` may be JSON of another version's fields.

    Tuples count as lists. A field that `old` lacks has its default there; "(absent)" are keys of dict fields, and
    fields that no longer exist.
    """
    old, unknown = (old, {}) if isinstance(old, Config) else _read(old)
    a, b = (flatten(json.loads(to_json(config))) for config in (old, new))
    a |= unknown
    pairs = {name: (a.get(name, "(absent)"), b.get(name, "(absent)")) for name in sorted(a.keys() | b.keys())}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def check_resume(old: Config | str, new: Config, where) -> None:
    """Raises ConfigError if a run that began with `old` cannot go on with `new`; logs what other changes mean.

    Args:
      where: the run's folder; what its stages have left decides which of them may still be added.
    """
    began = old if isinstance(old, Config) else _read(old)[0]
    engines, known, problems = _engines(began) | _engines(new), leaves(Config), []
    for name, (was, now) in diff(old, new).items():
        # A key of a dict field goes by the field's effect.
        leaf = next((known[part] for part in _prefixes(name) if part in known), None)
        if name == "data.overlong" and was == "error":  # nothing was dropped so far, nor would have been
            continue
        if name == "rollout.max_tokens" and "fixed_length" in (began.algorithm.reduction, new.algorithm.reduction) and leaf:
            # The loss divides by it.
            leaf = dataclasses.replace(leaf, spec=dataclasses.replace(leaf.spec, effect="computes"))
        if leaf is None:
            logging.info("%s is ignored: a field of another version (%.200r)", " ".join(name.split())[:200], was)
        elif not _may_change(leaf.spec, was, now, engines, where):
            raising = " or raise it" if leaf.spec.effect == "limit" else ""
            problems.append(Problem(name, now, f"the run in {where} began with {was!r}",
                                    f"set it back{raising}, or give the new run another --workdir"))
        elif leaf.spec.last_bits:
            logging.info("%s was %r and is %r: results may differ in their last bits", name, was, now)
        elif leaf.spec.effect == "limit":
            logging.info("%s was %r and is %r: from here on rows may be longer", name, was, now)
    if problems:
        raise ConfigError(problems)


def check_local(workdir) -> None:
    """Raises UserError where a run's folder is a URL."""
    first = (pathlib.Path(workdir) / "config.json").parts[0]
    if first[-1:] == ":" and len(first) > 2:  # what pathlib makes of gs://
        raise UserError(f"--workdir {workdir} is a URL; give a local folder and copy it there afterwards")


def write_config(workdir, config: Config) -> str:
    """Writes workdir/config.json, after a check that a run in the folder can go on with `config`.

    Returns:
      The JSON that was written, for the checkpoints.

    Raises:
      ConfigError: the run began with another config; the message names the fields that differ.
      UserError: workdir/config.json cannot be read, or the folder cannot be written.
    """
    check_local(workdir)
    path = pathlib.Path(workdir) / "config.json"
    try:
        if path.exists():
            check_resume(path.read_text(), config, workdir)
        write_text(path, to_json(config))
    except (ConfigError, OutputError):
        raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON of a config ({error}); remove it to start the run anew") from error
    return to_json(config)


def withdraw_config(workdir, before: str | None = None, since: float = 0.0) -> None:
    """Removes workdir/config.json where no stage has left a result yet: the folder then takes any config.

    before: what config.json held before; it is put back where no result was left since `since` (seconds, `time.time`).
    """
    workdir = pathlib.Path(workdir)
    made = [path for name in _FILES if (path := workdir / name).is_file() and path.stat().st_size]
    made += [path for name in ("models", "checkpoints") for path in (workdir / name).rglob("*") if path.is_file()]
    with contextlib.suppress(OSError):  # whoever writes the folder reports that it cannot be written
        if not made:
            (workdir / "config.json").unlink()
        elif before is not None and all(
                path.stat().st_mtime < since for path in (*made, *(workdir / "evaluation").rglob("*"))):
            write_text(workdir / "config.json", before)


def _may_change(spec, was, now, engines, where) -> bool:
    if spec.effect == "computes":
        return bool(spec.engines) and not engines & set(spec.engines)
    if spec.effect == "limit":
        return now >= was
    if spec.effect == "stages":
        changed = [stage for stage in _USED_BY if (stage in was) != (stage in now)]
        return not any(_changes_what_was_made(stage, stage in now, where) for stage in changed)
    return True


def _changes_what_was_made(stage, added, where) -> bool:
    """Whether a stage comes after something was made without its result, or goes before its result is there."""
    folder = pathlib.Path(where)

    def has(names):
        return any(path.is_file() for name in names for path in (folder / name, *(folder / name).rglob("*")))

    if has(_RESULTS[stage][:1]):
        return False
    return not added or any(has(_RESULTS[user]) for user in _USED_BY[stage])


def _engines(config) -> set[str]:
    """Engines that the run learns from; other engines serve evaluations only."""
    from zsjax.search.registry import specs

    search, stages = config.search, set(config.stages)
    used = {search.engine} | {spec.name for spec in specs(search.engine, search)}
    used |= {search.eval_engine} if "collect" in stages else set()
    return used | ({"simulator"} if stages & {"pretrain_simulator", "tune_simulator"} else set())


def _read(text) -> tuple[Config, dict[str, Any]]:
    """(the config, {dotted name: value} of fields that this version lacks) of JSON. Raises InputError."""
    try:
        tree = json_value(text)
    except ValueError as error:
        raise InputError(f"not JSON: {reason_of(error)}") from error
    if not isinstance(tree, dict):
        raise InputError(f"a {type(tree).__name__} where an object of fields is needed")
    unknown = {}
    _take_unknown(tree, "", unknown)
    config, problems = read_tree(tree)
    if problems:
        raise InputError(str(problems[0]))
    return config, unknown


def _take_unknown(tree, prefix, unknown):
    """Moves everything that is neither a field nor holds fields from `tree` to `unknown`; renames older fields."""
    for name in list(tree):
        field = prefix + name
        if now := renamed(Config).get(field):
            tree[now.removeprefix(prefix)] = tree.pop(name)
            continue
        if any(leaf.startswith(f"{field}.") for leaf in leaves(Config)):
            if isinstance(tree[name], dict):
                _take_unknown(tree[name], f"{field}.", unknown)
        elif field not in leaves(Config):
            unknown[field] = tree.pop(name)


def _prefixes(name):
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(len(parts), 0, -1))
