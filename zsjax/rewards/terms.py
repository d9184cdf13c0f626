"""Rewards as a sum of named terms: config.reward.terms = {"f1": 1.0, "searches": -0.02, "no_search": -0.1}.

A term is a number of one finished episode. What is good counts up (`f1`, `format`), what is to be discouraged is an
indicator or a count that gets a negative weight (`no_answer`, `searches`). Every term is logged by its name, so a run
shows which of them it is climbing.

Only what the policy wrote is looked at: its answer, its queries and its text, never the prompt or a document.
`retry_helped` alone also asks what the documents said.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from zsjax import rewards
from zsjax.config.named import Registry
from zsjax.types import ANSWER_TAGS, SEARCH_TAGS, THINK_TAGS

_THOUGHT = re.compile("|".join(map(re.escape, THINK_TAGS)))

TERMS = Registry("reward term")  # name -> (outcome: Outcome) -> float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one episode came to.

    Attributes:
      answer: inside of the policy's <answer> tags; None if the episode did not end with one.
      golds: every answer that counts as right.
      status: one of `types.STATUS_NAMES`.
      queries: what was searched for, in order; documents: what each search showed, a line a document without
        its number ("Doc 1" does not hold the answer "1").
      invalid_actions: generations without a search or an answer.
      texts: what the policy wrote, one text a generation.
      policy_tokens: number of tokens that the policy wrote.
      overlong: 0 to 1, how far policy_tokens is beyond config.reward.overlong_from on the way to overlong_to.
      opens_thought: whether the prompt ends in <think>, as chat templates of thinking models do; None: not known.
      action_tags: the tags that open an action.
    """

    answer: str | None
    golds: Sequence[str]
    status: str
    queries: Sequence[str]
    documents: Sequence[str]
    invalid_actions: int
    texts: Sequence[str]
    policy_tokens: int
    overlong: float = 0.0
    opens_thought: bool | None = None
    action_tags: Sequence[str] = (SEARCH_TAGS[0], ANSWER_TAGS[0])


@TERMS("format", help="1: every generation is well formed, see zsjax.rewards.terms.well_formed")
def well_formed(outcome: Outcome) -> float:
    """1 if the episode ended with a non-empty answer, no generation was an invalid action, and in each generation
    thoughts are opened and closed in turn, before the one search or answer that ends it. The thought that the prompt opened
    (`Outcome.opens_thought`) is closed first."""

    def generation_is(text, begins):
        tags = _THOUGHT.findall(text)
        if begins or (begins is None and tags[:1] == [THINK_TAGS[1]]):
            tags = [THINK_TAGS[0], *tags]
        paired = tags == [*THINK_TAGS] * (len(tags) // 2)
        begun = [tag for tag in outcome.action_tags if tag in text]
        one = len(begun) == 1 == text.count(begun[0])
        return paired and one and text.rfind(THINK_TAGS[1]) < text.find(begun[0])

    opened = [outcome.opens_thought, *[False] * len(outcome.texts)]  # by the prompt: for the first generation only
    good = outcome.answer and not outcome.invalid_actions and all(map(generation_is, outcome.texts, opened))
    return float(bool(good))


@TERMS("retry_helped", help="1: asking again found the answer, see zsjax.rewards.terms.retry_helped")
def retry_helped(outcome: Outcome) -> float:
    """1 if asking again in other words, or once more, found what led to the right answer.

    That is: the answer is an exact match, the documents of some search do not hold a gold answer, and those of a later
    search do whose query shares at least half of its words with the earlier one (F1 >= 0.5; without that, the second
    hop of every question of two would be a retry). Keep its weight small beside the answer's: a policy can fail on
    purpose to be seen retrying.
    """
    if not rewards.exact_match(outcome.answer, outcome.golds):
        return 0.0
    holds = [rewards.contains_match(text, outcome.golds) > 0 for text in outcome.documents]
    pairs = ((i, j) for j in range(len(holds)) for i in range(j))
    return float(any(not holds[i] and holds[j] and rewards.f1_score(outcome.queries[j], [outcome.queries[i]]) >= 0.5
                     for i, j in pairs))


# The scores are 0 where the answer is None.
TERMS("f1", help="F1 of the answer, 0 to 1")(lambda o: rewards.f1_score(o.answer, o.golds))
TERMS("em", help="1: the answer is an exact match")(lambda o: rewards.exact_match(o.answer, o.golds))
TERMS("contains", help="1: the answer contains a gold answer")(lambda o: rewards.contains_match(o.answer, o.golds))
TERMS("no_answer", help="1: no answer was given")(lambda o: float(o.answer is None))
TERMS("no_search", help="1: nothing was searched for")(lambda o: float(not o.queries))
TERMS("searches", unit="searches", help="number of searches")(lambda o: float(len(o.queries)))
TERMS("invalid_actions", unit="actions", help="generations without a search or an answer")(
    lambda o: float(o.invalid_actions))
TERMS("truncated", help="1: the row was full before the policy was done")(lambda o: float(o.status == "out_of_tokens"))
TERMS("overlong", help="DAPO's soft punishment (arXiv 2503.14476, equation 13), 0 to 1, with a negative weight")(
    lambda o: o.overlong)


load_term = functools.cache(TERMS.load)


def score(found: Sequence[Outcome], weights: Mapping[str, float]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rewards of episodes.

    Args:
      found: of `zsjax.rollout.outcomes.outcomes`.
      weights: term -> weight.

    Returns:
      (float32[B] sums of weight * term, {term: float64[B] unweighted}).
    """
    terms = {name: np.array([load_term(name)(outcome) for outcome in found], np.float64) for name in weights}
    total = sum((weights[name] * values for name, values in terms.items()), np.zeros(len(found)))
    return total.astype(np.float32), terms


def masked_rows(found: Sequence[Outcome], names: Sequence[str]) -> np.ndarray:
    """bool[B]: episodes that are left out of the loss; names: some of "truncated" and "overlong" (overlong wholly)."""
    return np.array([("truncated" in names and o.status == "out_of_tokens") or ("overlong" in names and o.overlong >= 1)
                     for o in found], bool)
