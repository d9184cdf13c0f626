"""Questions that can be played, found before a run begins."""

import logging
from collections.abc import Callable, Sequence

from zsjax.errors import InputError
from zsjax.rewards import normalize_answer
from zsjax.types import Question

_EDGES = 8  # tokens that joining a question to its template may add
_NAMED = 100  # questions that a log line names


def keep_playable(questions: Sequence[Question], encode: Callable[[str], Sequence[int]], *, max_prompt_tokens: int,
             overlong: str, source: str) -> list[Question]:
    """The questions whose prompt fits and whose gold answers hold a word.

    Args:
      questions: of one source.
      encode: a question's text -> the ids of its prompt.
      max_prompt_tokens: a longer prompt does not fit; prompts are never cut.
      overlong: "error" refuses questions that cannot be played, "drop" drops and logs them.
      source: their file, for messages.

    Raises:
      InputError: such questions with overlong="error", or no other questions. One line with their ids.
    """
    frame, reasons = len(encode("")), {}
    for row, question in enumerate(questions):
        text = question.question
        # An ASCII text has at most as many tokens as characters; most are far shorter and need not be encoded.
        if not text.isascii() or frame + len(text) + _EDGES > max_prompt_tokens:
            size = len(encode(text))
            if size > max_prompt_tokens:
                reasons[row] = f"{question.key!r} (a prompt of {size} tokens)"
        if row not in reasons and not any(map(normalize_answer, question.golden_answers)):
            reasons[row] = f"{question.key!r} (no gold answer with a word: {list(question.golden_answers)})"
    if not reasons:
        return list(questions)
    named = ", ".join(list(reasons.values())[:_NAMED])
    if len(reasons) > _NAMED:
        named += f" and {len(reasons) - _NAMED} more"
    found = f"{source}: {len(reasons)} of {len(questions)} questions cannot be played: {named}"
    if overlong == "error" or len(reasons) == len(questions):
        raise InputError(f"{found}; raise rollout.max_prompt_tokens above {max_prompt_tokens} for long prompts, correct "
                         "the file, or leave such questions out with data.overlong='drop'")
    logging.warning("dropped: %s", found)
    return [question for row, question in enumerate(questions) if row not in reasons]
