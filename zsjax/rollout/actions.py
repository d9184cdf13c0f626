"""What a policy can do: a table of actions, the tags of each and what follows from it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zsjax.types import ANSWER_TAGS, ANSWERED, RUNNING, SEARCH_TAGS

# What a row waits for.
NOTHING, DOCUMENTS, HINT = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Action:
    """A pair of tags. A generation ends with the closing tag; the action is valid if the opening one came before it.

    Attributes:
      open, close: the tags.
      waits_for: what the row waits for; it then uses up a turn.
      ends: the status that ends the episode; RUNNING: it goes on.
    """

    open: str
    close: str
    waits_for: int = NOTHING
    ends: int = RUNNING


SEARCH = Action(*SEARCH_TAGS, waits_for=DOCUMENTS)
ANSWER = Action(*ANSWER_TAGS, ends=ANSWERED)
ACTIONS = (SEARCH, ANSWER)


def tags(actions: Sequence[Action] = ACTIONS) -> tuple[str, ...]:
    """The tags of a `TagAutomaton`: its event for actions[i] is 2i + 1 for the opening, 2i + 2 for the closing tag."""
    return tuple(tag for action in actions for tag in (action.open, action.close))


OPEN_SEARCH, CLOSE_SEARCH, OPEN_ANSWER, CLOSE_ANSWER = range(1, 5)  # events of ACTIONS


class Rule(NamedTuple):
    """What an event of the automaton does: a row of `rules`, or a column for each row of a batch.

    action: which of the actions. opens, closes: 1 for its opening, its closing tag. waits_for, ends: of the action.
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
        rows += [Rule(i, opens=1), Rule(i, closes=1, waits_for=action.waits_for, ends=action.ends)]
    return np.array(rows, np.int32)
