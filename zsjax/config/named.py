"""Registries: functions that a config names, and what is said of each of them, written once.

    LOSSES = Registry("loss")

    @LOSSES("ppo_clip", help="clipped surrogate", reads=("clip_low", "clip_high"))
    def ppo_clip_loss(batch, logprobs, *, loss_mask, clip_low, clip_high): ...

    LOSSES.load("ppo_clip"), LOSSES.load("package.module:function")

Config checks, error messages, report and documentation read the registry. A function of another package needs no
decorator: "package.module:function" names it. With a decorator it brings its unit and help as well.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping

from zsjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is said of a registered function.

    Attributes:
      name: what a config calls it.
      help, unit: one line, and the unit of its result.
      reads: fields of its section of the config that it takes as keywords.
      needs: what else must be there, such as "values", "groups", "reference" or the name of a scorer.
      masked_only: whether it looks at nothing outside of the loss mask. Log-probs there are then not computed.
    """

    name: str = ""
    help: str = ""
    unit: str = ""
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    masked_only: bool = False


class Registry(Mapping):
    """name -> function, in the order of registration; `entry_of(function)` has the rest."""

    def __init__(self, what: str):
        """what: the noun of error messages, such as "loss"."""
        self.what, self._functions = what, {}

    def __call__(self, name: str, **said) -> Callable:
        """A decorator that registers a function. said: fields of `Entry`."""

        def register(function):
            function.entry = Entry(name, **said)
            self._functions[name] = function
            return function

        return register

    def __getitem__(self, name: str) -> Callable:
        return self._functions[name]

    def __iter__(self):
        return iter(self._functions)

    def __len__(self):
        return len(self._functions)

    def load(self, name: str) -> Callable:
        """The function of a registered name, or of "package.module:function".

        Raises:
          InputError: no such name, or the function cannot be imported.
        """
        return self[name] if name in self else load_object(name, self.what, self)

    def entry(self, name: str) -> Entry:
        """What is said of a name that `load` finds; an empty `Entry` of any other."""
        try:
            return entry_of(self.load(name))
        except (Exception, SystemExit):  # importing a user's module may raise anything
            return Entry(name)


def entry_of(function: Callable) -> Entry:
    """What the decorator said of a function; an empty `Entry` of a function without one."""
    return getattr(function, "entry", None) or Entry(getattr(function, "__name__", ""))


def load_object(name: str, what: str, known: Iterable[str] = (), kind: type = Callable):
    """The object that "package.module:name" names.

    Args:
      what: the noun of error messages, such as "loss".
      known: registered names, for the message.
      kind: the object must be an instance of it.

    Raises:
      InputError: the name has no colon, the object cannot be imported, or it is of another kind.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(f"unknown {what} {name!r}: one of {', '.join(known)} or 'package.module:name'")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot load the {what} {name!r}: {error}") from error
    if not isinstance(found, kind):
        noun = "a function or class" if kind is Callable else f"an object of {kind.__name__}"
        raise InputError(f"the {what} {name!r} is not {noun}")
    return found
