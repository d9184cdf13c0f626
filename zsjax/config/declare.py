"""How a field of the config is declared: its default, help, range, choices, unit and effect.

    temperature: float = field(1.0, "of the policy's sampling", "(0, 10]")

`field` keeps these as a `Spec` in the dataclass field's metadata. `zsjax.config.allowed` checks range, choices
and names. `effect` says what a change means for a run that has begun; `zsjax.config.folder` reads it.
"""

import copy
import dataclasses
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

# What a change of a field means for a folder that holds a run.
EFFECTS = {
    "computes": "decides what is computed: a change needs a new folder",
    "limit": "bounds a row; rows within the bound stay the same: it may be raised",
    "how": "decides where, how fast, or what else is written: free to change",
    "later": "is read by evaluations and the report only: free to change, both are made again",
    "stages": "is free to change, but a stage is not added after what it would have changed was made",
}


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of finite numbers, written as in mathematics: "[0, 1)" holds 0 but not 1. No interval holds NaN."""

    low: float
    high: float
    above: bool  # low itself is not in it
    below: bool  # high itself is not in it

    @classmethod
    def parse(cls, text: str) -> "Range":
        opening, low, high, closing = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", text).groups()
        return cls(float(low), float(high), opening == "(", closing == ")")

    def __contains__(self, value) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high)

    def __str__(self):
        low, high = (f"{bound:,.0f}" if bound == round(bound) else f"{bound:g}" for bound in (self.low, self.high))
        if self.high > 100:  # a guard against typing errors; the method has no such limit
            return f"{f'above {low}' if self.above else f'{low} or more'}, at most {high}"
        return f"above {low}, up to {high}" if self.above else f"{low} up to, but not, {high}" if self.below else (
            f"{low} to {high}")


@dataclasses.dataclass(frozen=True)
class Spec:
    """The description of a field; see `field`."""

    help: str = ""
    range: Range | None = None
    choices: tuple[str, ...] = ()
    names: str = ""
    unit: str = ""
    effect: str = "computes"
    last_bits: bool = False
    engines: tuple[str, ...] = ()
    was: str = ""

    def known(self) -> tuple[str, ...]:
        """The choices, those of registries included."""
        found = []
        for choice in self.choices:
            if choice.startswith("zsjax."):
                module, _, name = choice.partition(":")
                registered = getattr(importlib.import_module(module), name)
                found += registered() if inspect.isfunction(registered) else registered
            else:
                found.append(choice)
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field that holds a value: dotted name, annotation, default, description."""

    name: str
    kind: Any
    default: Any
    spec: Spec


def field(default, help: str, range: str | None = None, **said):
    """A field of a config dataclass.

    Args:
      default: a dict is copied for every config.
      help: one sentence.
      range: numbers that the field or its items may hold, such as "(0, 1]"; every number needs one.
      choices: texts that the field or its items may hold. "zsjax.module:NAME" adds the names of that registry, or
        those that the function NAME returns.
      names: what a text names: "path" (also "asset:NAME" and "hf:OWNER/NAME"), "folder" (where files are written),
        "url", "variable" (of the environment) or "function" ("package.module:function").
      unit: of a number.
      effect: a name in `EFFECTS`.
      last_bits: results may differ in their last bits after a change.
      engines: the only search engines that read the field; a run without them may change it. (): all read it.
      was: the field's name in older versions, whose folders are still read.
    """
    spec = Spec(help, Range.parse(range) if range else None, **said)
    made = {"default_factory": lambda: copy.deepcopy(default)} if isinstance(default, dict) else {"default": default}
    return dataclasses.field(**made, metadata={"spec": spec})


# Fields of the other effects; of `fast`, the last bits of results may differ as well.
free, later, limit = (functools.partial(field, effect=effect) for effect in ("how", "later", "limit"))
fast = functools.partial(field, effect="how", last_bits=True)

# Ranges and choices of many fields.
COUNT, TOKENS, SHARE = "[1, 1e9]", "[1, 1e7]", "[0, 1]"
DTYPES = ("float32", "bfloat16", "float16")
REMAT = ("none", "zsjax.models.decoder:REMAT")
CURRICULA = "zsjax.rl.curricula:CURRICULA"


def group(cls, help: str = "", *, engines: tuple[str, ...] = (), effect: str = "", **defaults):
    """A field that holds fields of `cls`. engines, effect: of all its fields; defaults: replace those of `cls`."""
    return dataclasses.field(default_factory=lambda: cls(**defaults),
                             metadata={"spec": Spec(help, engines=engines, effect=effect)})


@functools.cache
def leaves(cls) -> dict[str, Leaf]:
    """{dotted name: leaf} of a config dataclass, in order."""
    return {leaf.name: leaf for leaf in _walk(cls, cls(), "", Spec(effect=""))}


@functools.cache
def renamed(cls) -> dict[str, str]:
    """{dotted name in an older version: name} of a config dataclass."""
    return {f"{name.rpartition('.')[0]}.{leaf.spec.was}": name for name, leaf in leaves(cls).items() if leaf.spec.was}


def _walk(cls, defaults, prefix, over) -> Iterator[Leaf]:
    hints = typing.get_type_hints(cls)
    for declared in dataclasses.fields(cls):
        name, default, spec = prefix + declared.name, getattr(defaults, declared.name), declared.metadata.get("spec", Spec())
        spec = dataclasses.replace(spec, engines=over.engines or spec.engines, effect=over.effect or spec.effect)
        if dataclasses.is_dataclass(default):
            yield from _walk(hints[declared.name], default, f"{name}.", spec)
        else:
            yield Leaf(name, hints[declared.name], default, spec)
