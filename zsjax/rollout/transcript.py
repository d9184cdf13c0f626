"""Episodes as text, for rewards, logs and people: segments, queries, answers.

Only POLICY tokens are parsed: an answer in a prompt or a document is not the policy's.
"""

import itertools
import re

import numpy as np

from zsjax import types
from zsjax.rewards import extract_answer


def segments(episodes: types.Episodes, b: int, tokenizer) -> list[dict]:
    """Row b as [{"role": name, "text": str}], one entry per run of equal roles."""
    length = int(episodes.length[b])
    tokens, roles = np.asarray(episodes.tokens[b][:length]), np.asarray(episodes.roles[b][:length])
    borders = [0, *(np.flatnonzero(np.diff(roles)) + 1).tolist(), length] if length else [0]
    return [{"role": types.ROLE_NAMES[roles[start]], "text": tokenizer.decode(tokens[start:stop].tolist())}
            for start, stop in itertools.pairwise(borders)]


class Stream:
    """Shows row 0 of a rollout while it grows: a `watch` of `make_rollout` that calls show(role, new text).

    A character of several tokens is shown when it is whole, and a broken one when its segment has ended.
    """

    def __init__(self, tokenizer, show):
        self.tokenizer, self.show = tokenizer, show
        self._start, self._said = 0, ""  # where the current segment begins, and its text shown so far

    def __call__(self, state):
        length, ended = int(state.length[0]), int(state.status[0]) != types.RUNNING
        # Cut on the host: jax would compile a program for each length.
        tokens, roles = np.asarray(state.tokens[0])[:length], np.asarray(state.roles[0])[:length]
        while self._start < length:
            role = roles[self._start]
            others = np.flatnonzero(roles[self._start:] != role)
            stop = self._start + int(others[0]) if len(others) else length
            over = stop < length or ended
            # The whole segment is decoded again: a token's text may depend on the tokens before it.
            text = self.tokenizer.decode(tokens[self._start:stop].tolist())
            text = text if over else text.rstrip("\N{REPLACEMENT CHARACTER}")
            if len(text) > len(self._said):
                self.show(types.ROLE_NAMES[role], text[len(self._said):])
                self._said = text
            if not over:
                break
            self._start, self._said = stop, ""


def generations(episodes: types.Episodes, b: int) -> list[np.ndarray]:
    """The runs of POLICY tokens of row b, one per generation."""
    length = int(episodes.length[b])
    tokens = np.asarray(episodes.tokens[b][:length])
    is_policy = np.asarray(episodes.roles[b][:length]) == types.POLICY
    borders = np.flatnonzero(np.diff(np.concatenate([[0], is_policy.astype(int), [0]])))
    return [tokens[start:stop] for start, stop in borders.reshape(-1, 2)]


def answers(episodes: types.Episodes, tokenizer) -> list[str | None]:
    """The answer of each row, from its last generation; None unless the row ended ANSWERED."""
    def answer(b):
        if episodes.status[b] != types.ANSWERED:
            return None
        return extract_answer(tokenizer.decode(generations(episodes, b)[-1].tolist()))

    return [answer(b) for b in range(len(episodes.length))]


def searches(episodes: types.Episodes, tokenizer) -> list[list[str]]:
    """The queries that each row ran, in order."""
    def query(b, turn):
        start, stop = episodes.query_span[b][turn]
        text = tokenizer.decode(np.asarray(episodes.tokens[b][start:stop]).tolist())
        found = re.match(r"[^>]*>(.*)</\w+>", text, re.DOTALL)  # from the token that completes the opening tag on
        return found[1].strip() if found else ""

    return [[query(b, turn) for turn in range(episodes.query_span.shape[1]) if episodes.query_span[b][turn][1] > 0]
            for b in range(len(episodes.length))]


def records(episodes: types.Episodes, questions, tokenizer, *, rows=None, **columns) -> list[dict]:
    """Trajectories that JSON can hold.

    Args:
      episodes: on the host (numpy).
      questions: one for each row.
      rows: numbers of rows; None is all.
      columns: more values of each row, such as reward=[...].
    """
    said, asked = answers(episodes, tokenizer), searches(episodes, tokenizer)
    rows = range(len(episodes.length)) if rows is None else rows
    return [{
        "id": questions[b].id,
        **({"key": questions[b].key} if questions[b].key != questions[b].id else {}),
        "question": questions[b].question,
        "golden_answers": list(questions[b].golden_answers),
        "answer": said[b],
        "status": types.STATUS_NAMES[int(episodes.status[b])],
        "queries": asked[b],
        "search_status": [types.SEARCH_STATUS_NAMES[s] for s in episodes.search_status[b].tolist()],
        "noisy": [bool(n.any()) for n in episodes.noisy[b]],
        "num_searches": int(episodes.num_searches[b]),
        "tokens": int(episodes.length[b]),
        **{name: float(values[b]) for name, values in columns.items()},
        "segments": segments(episodes, b, tokenizer),
    } for b in rows]
