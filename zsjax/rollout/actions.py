"""What a policy can do: a table of actions, the tags of each, and what follows from it.

Another action is a row of the table, in any module, that `rollout.actions` names:

    OPEN = Action("open", asks=True, run=look_up)           # in pages.py
    config.rollout.actions = ("search", "answer", "pages:OPEN")
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from zsjax.config.named import load_object
from zsjax.errors import InputError
from zsjax.types import ANSWERED, RUNNING

# What a row waits for. DOCUMENTS + i: the documents that actions[i] asked for.
NOTHING, HINT, DOCUMENTS = 0, 1, 2
SEPARATOR = ";"  # between the queries of one action


@dataclasses.dataclass(frozen=True)
class Action:
    """A pair of tags, <name> and </name>. The action is valid if the opening tag stands before the closing one.

    A generation ends with the closing tag. After an action that neither asks nor ends, it goes on.

    Attributes:
      name: of the tags; letters, digits and underscores.
      asks: whether the text between the tags is a query. The row uses up a turn and waits for documents.
      ends: the status that the episode ends with; RUNNING: the episode goes on.
      queries: how many queries the text may hold, with `SEPARATOR` between them. Each finds num_documents documents.
        Further queries are dropped.
      run: function (engine, queries, contexts, *, k) -> a list of documents for each query, called on the host in place
        of `engine.search`; None: `engine.search`, or the simulator in the compiled program.

    Raises:
      InputError: a name that makes no tag, or an action that asks and ends.
    """

    name: str
    asks: bool = False
    ends: int = RUNNING
    queries: int = 1
    run: Callable | None = None

    def __post_init__(self):
        if not re.fullmatch(r"\w+", self.name):
            raise InputError(f"the action {self.name!r}: its name makes no tag; use letters, digits and underscores")
        if self.asks and self.ends != RUNNING:
            raise InputError(f"the action {self.name!r} asks and ends the episode; set asks or ends")

    @property
    def open(self) -> str:
        return f"<{self.name}>"

    @property
    def close(self) -> str:
        return f"</{self.name}>"


SEARCH = Action("search", asks=True)
ANSWER = Action("answer", ends=ANSWERED)
ACTIONS = (SEARCH, ANSWER)


def load_actions(names: Sequence[str]) -> tuple[Action, ...]:
    """The table of a config: names of `ACTIONS`, or "package.module:ACTION".

    Raises:
      InputError: no such action, two of one name, or no action that ends an episode or that asks.
    """
    known = {action.name: action for action in ACTIONS}
    actions = tuple(known[name] if name in known else load_object(name, "action", known, Action) for name in names)
    if len({action.name for action in actions}) < len(actions):
        raise InputError(f"the actions {', '.join(names)}: two have the same tags; give each its own name")
    if not any(action.asks for action in actions) or all(action.ends == RUNNING for action in actions):
        raise InputError(f"the actions {', '.join(names)}: one must ask and one must end the episode; add search or answer")
    return actions


def tags(actions: Sequence[Action] = ACTIONS) -> tuple[str, ...]:
    """The tags of a `TagAutomaton`: its event for actions[i] is 2i + 1 for the opening, 2i + 2 for the closing tag."""
    return tuple(tag for action in actions for tag in (action.open, action.close))


class Rule(NamedTuple):
    """What an event of the automaton does: a row of `rules`, or a column for each row of a batch.

    action: which of the actions. opens, closes: 1 for its opening, its closing tag. waits_for: what the row waits for
    after the closing tag. ends: of the action.
    """

    action: Any
    opens: Any = 0
    closes: Any = 0
    waits_for: Any = NOTHING
    ends: Any = RUNNING


def rules(actions: Sequence[Action] = ACTIONS) -> np.ndarray:
    """int32[events, fields of Rule], by event; event 0 is none."""
    rows = [Rule(0)]
    for i, action in enumerate(actions):
        waits_for = DOCUMENTS + i if action.asks else NOTHING
        rows += [Rule(i, opens=1), Rule(i, closes=1, waits_for=waits_for, ends=action.ends)]
    return np.array(rows, np.int32)
