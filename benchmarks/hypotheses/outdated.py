"""Whether a stored run is still the run that its arm describes: experiments/hard_world.py may have changed since."""

import functools
import json
import os
import pathlib
from collections.abc import Mapping

from benchmarks.hypotheses import entries
from benchmarks.hypotheses.entries import Arm, Model
from zsjax.config import Config, diff, load_experiment, resolve
from zsjax.config.declare import leaves

EXPERIMENT = pathlib.Path(__file__).parents[2] / "experiments" / "hard_world.py"

MAKING = {"pretrain", "pretrain_simulator", "collect", "tune_simulator"}  # stages with settings of their own
TRAINING = {"train", "optimizer", "value", "algorithm", "reward", "curriculum", "evaluate", "health"}


def differences(arm: Arm | Model, line: Mapping) -> list[str]:
    """Dotted settings of the stored line that a run of the arm, or of the model, would have otherwise today.

    Fields without influence on results do not count, nor those of another version of the package. Of paths, the last
    part is compared: folders of models and checkouts move.
    """
    if "config" not in line:
        return []
    stages, unread = "train,evaluate", set()
    if isinstance(arm, Model):
        stages, unread = arm.stages, TRAINING | MAKING - set(arm.stages.split(","))
    now = _config(arm.arg, tuple(sorted({**arm.overrides, "stages": stages}.items())), line["seed"])
    found = diff(json.dumps(line["config"]), now)
    return [name for name, pair in found.items() if _counts(name, unread) and not _same_place(*pair)]


@functools.cache
def _config(arg: str, overrides: tuple, seed: int) -> Config:
    settings = entries.settings(dict(overrides), pathlib.Path("/models"))
    return resolve(load_experiment(f"{EXPERIMENT}:{arg},seed={seed}".replace(":,", ":")), settings, check=False)


def _counts(name: str, unread: set[str]) -> bool:
    parts, known = name.split("."), leaves(Config)
    dotted = [".".join(parts[:i]) for i in range(len(parts), 0, -1)]  # a key of a dict goes by its field
    leaf = next((known[part] for part in dotted if part in known), None)
    return leaf is not None and leaf.spec.effect != "how" and parts[0] not in unread


def _same_place(was, now) -> bool:
    paths = [pathlib.PurePath(value) for value in (was, now) if isinstance(value, str) and os.path.isabs(value)]
    return len(paths) == 2 and paths[0].name == paths[1].name
