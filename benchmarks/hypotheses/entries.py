"""Hypotheses and arms as files: cNN.toml is a claim, dNN.toml one about the world itself, arms.toml has the arms and the
models that they start from, defaults.toml what the experiments do by default and the claims that it follows from.

A claim's file:

    id, title, claim, source    texts; seeds: list of numbers; order: when it is run, lowest first
    first_seeds                 number of the seeds with which it was undecided, if it has been given more; the arms of
                                "show" have these alone
    note                        text: what the comparison does not say
    caveat                      text: why a verdict on it says less than it seems to
    models                      models of arms.toml whose gates the section shows
    [[comparisons]]             says, smallest (zsjax's ledger rule: verdict.py), treatment and control: "arm:measure"
    [[correlations]]            says, smallest, x and y: measures; arms: over whose runs, each measured from the means of
                                its arm and of its seed
    show                        further arms whose figures the table shows

An arm is an argument of experiments/hard_world.py and overrides of its config, beside those of [shared] in arms.toml. In an
override's value, "@NAME" is the folder of a model of arms.toml.
"""

import dataclasses
import hashlib
import json
import pathlib
import tomllib
from collections.abc import Mapping, Sequence

from benchmarks.hypotheses import defaults, verdict
from benchmarks.hypotheses.defaults import Default

FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that arms start from: made by `stages` of experiments/hard_world.py:arg, found at `output` of that run."""

    name: str
    arg: str
    stages: str
    output: str
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A training run, without its seed."""

    name: str
    arg: str
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hex digits of what the arm does: a stored line of another digest is of another arm."""
        return hashlib.sha256(json.dumps([self.arg, dict(self.overrides)], sort_keys=True).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """treatment, control: (arm, measure)."""

    says: str
    smallest: float
    treatment: tuple[str, str]
    control: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Correlation:
    """x, y: measures of the runs of `arms`, from the means of the run's arm and seed."""

    says: str
    smallest: float
    x: str
    y: str
    arms: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A claim, how it is tested, and the seeds."""

    id: str
    title: str
    claim: str
    source: str
    seeds: tuple[int, ...]
    order: int
    comparisons: tuple[Comparison, ...] = ()
    correlations: tuple[Correlation, ...] = ()
    show: tuple[str, ...] = ()
    note: str = ""
    caveat: str = ""
    models: tuple[str, ...] = ()
    first_seeds: int = 0

    def arms(self, seed: int | None = None) -> list[str]:
        """Names of the arms that it needs, each once; of a seed those that run with it."""
        names = [name for c in self.comparisons for name in (c.treatment[0], c.control[0])]
        names += [name for c in self.correlations for name in c.arms]
        shown = seed is None or not self.first_seeds or seed in self.seeds[:self.first_seeds]
        return list(dict.fromkeys([*names, *(self.show if shown else ())]))

    def measures(self, arm: str) -> set[str]:
        """Those of the arm's runs that its tests read."""
        sides = [side for c in self.comparisons for side in (c.treatment, c.control)]
        sides += [(name, measure) for c in self.correlations for name in c.arms for measure in (c.x, c.y)]
        return {measure for name, measure in sides if name == arm}


@dataclasses.dataclass(frozen=True)
class Ledger:
    """All hypotheses, in the order in which they are run."""

    hypotheses: Sequence[Hypothesis]
    arms: Mapping[str, Arm]
    models: Mapping[str, Model]
    defaults: Sequence[Default] = ()


def settings(overrides: Mapping[str, str], models: pathlib.Path) -> dict[str, str]:
    """Overrides as a command takes them: "@NAME" in the folder `models`. A model that is read has no shape of its own."""
    found = {}
    for name, value in overrides.items():
        found[name] = str(models / value[1:]) if value.startswith("@") else value
        if name.endswith(".init"):
            model = name.removesuffix("init")
            found |= {f"{model}shape": "{}", f"{model}positional_bias_init": "False"}
    return found


def load(folder: pathlib.Path = FOLDER) -> Ledger:
    """The entries of a folder.

    Raises:
      ValueError: an entry that cannot be read, an arm or a model that is not there, an unknown rule; names the file.
    """
    shared = _read(folder / "arms.toml")
    models = {name: Model(name, **fields) for name, fields in shared.get("models", {}).items()}
    for_all = shared.get("shared", {})
    arms = {name: Arm(name, fields["arg"], for_all | fields.get("overrides", {})) for name, fields in shared["arms"].items()}
    found = sorted((_hypothesis(path) for path in folder.glob("[cd][0-9]*.toml")), key=lambda h: (h.order, h.id))
    for hypothesis in found:
        for name in hypothesis.arms():
            if name not in arms:
                raise ValueError(f"{hypothesis.id}: no arm {name!r} in arms.toml")
    for owner in [*arms.values(), *models.values()]:
        for value in owner.overrides.values():
            if value.startswith("@") and value[1:].partition("/")[0] not in models:
                raise ValueError(f"arms.toml: {owner.name} names the model {value!r}, which is not there")
    listed = defaults.load(folder / "defaults.toml")
    if unknown := {default.claim for default in listed} - {"", *(hypothesis.id for hypothesis in found)}:
        raise ValueError(f"defaults.toml: claim = {min(unknown)!r} is in no file")
    return Ledger(found, arms, models, listed)


def _read(path):
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _hypothesis(path) -> Hypothesis:
    fields = _read(path)
    try:
        comparisons = tuple(
            Comparison(c["says"], c["smallest"], tuple(c["treatment"].split(":")), tuple(c["control"].split(":")))
            for c in fields.pop("comparisons", ()))
        correlations = tuple(Correlation(**{**c, "arms": tuple(c["arms"])}) for c in fields.pop("correlations", ()))
        for test in (*comparisons, *correlations):
            verdict.decide(test.says, verdict.Effect(0.0, 1.0, 2), test.smallest)  # raises
        lists = {name: tuple(fields.get(name, ())) for name in ("show", "models")}
        return Hypothesis(**{**fields, "seeds": tuple(fields["seeds"]), **lists},
                          comparisons=comparisons, correlations=correlations)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
