"""From episodes to the inputs of reward terms: answers, queries, shown documents and texts."""

import re

import numpy as np

from zsjax import types
from zsjax.rewards.terms import Outcome
from zsjax.rollout import transcript
from zsjax.rollout.actions import ACTIONS
from zsjax.types import THINK_TAGS


def outcomes(episodes: types.Episodes, questions, tokenizer, *, overlong=(0, 0), actions=ACTIONS) -> list[Outcome]:
    """The outcome of each row.

    overlong: (from, to) in policy tokens, see `Outcome`; (0, 0) is none. actions: the policy's table.
    """
    said, asked = transcript.answers(episodes, tokenizer), transcript.searches(episodes, tokenizer)
    low, high = overlong
    found = []
    for b, question in enumerate(questions):
        written = transcript.generations(episodes, b)
        tokens = sum(len(piece) for piece in written)
        beyond = min(max((tokens - low) / max(high - low, 1), 0.0), 1.0) if high else 0.0
        found.append(Outcome(
            answer=said[b], golds=question.golden_answers, status=types.STATUS_NAMES[int(episodes.status[b])],
            queries=asked[b], documents=_documents(episodes, b, tokenizer),
            invalid_actions=int((episodes.search_status[b] == types.INVALID_ACTION).sum()),
            texts=[tokenizer.decode(piece.tolist()) for piece in written], policy_tokens=tokens, overlong=beyond,
            opens_thought=_prompt(episodes, b, tokenizer).rstrip().endswith(THINK_TAGS[0]),
            action_tags=tuple(action.open for action in actions)))
    return found


def _prompt(episodes, b, tokenizer):
    """The end of the prompt."""
    length = int((np.asarray(episodes.roles[b]) == types.PROMPT).sum())
    return tokenizer.decode(np.asarray(episodes.tokens[b][max(0, length - 16):length]).tolist())


def _documents(episodes, b, tokenizer):
    spans = episodes.documents_span[b][episodes.query_span[b][:, 1] > 0]
    texts = (tokenizer.decode(np.asarray(episodes.tokens[b][start:stop]).tolist()) for start, stop in spans)
    return ["\n".join(_bare_lines(text)) for text in texts]


def _bare_lines(text):
    """The documents of a search's text, a line each, without the numbers that name their places ("Doc 2: ...")."""
    lines = filter(None, (line.strip() for line in text.split("\n")))
    return [re.sub(rf"^(\W*(?:doc|document)?\W*){place}(?=\s*[:.()\]])", r"\1", line, flags=re.IGNORECASE)
            for place, line in enumerate(lines, 1)]
