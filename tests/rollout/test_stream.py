"""What a rollout writes is shown while it is written, never half a character."""

import types as python
from itertools import groupby

import jax
import numpy as np
import pytest

from tests.small_models import PARAMS, POLICY, QUESTIONS, TOKENIZER, Library, make_config, searching
from zsjax import types
from zsjax.rollout import make_rollout, transcript


class Bytes:
    """A token a byte."""

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


class Words:
    """SentencePiece's way: the blank in front of a text's first word is not shown."""

    def decode(self, ids):
        return " ".join("abcdefgh"[i] for i in ids)


def stream(tokenizer, tokens, roles, steps, status=types.RUNNING):
    """[(role, text)] of a row that grows to each of the lengths `steps`; it has `status` at the last."""
    shown = []
    follow = transcript.Stream(tokenizer, lambda role, text: shown.append((role, text)))
    for length in steps:
        follow(python.SimpleNamespace(tokens=np.array([tokens]), roles=np.array([roles]), length=np.array([length]),
                                      status=np.array([status if length == steps[-1] else types.RUNNING])))
    return shown


@pytest.mark.parametrize("text", ["Würm", "naïve 東京 🙂!", "plain"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_no_character_is_split(text, stride):
    tokens = list(text.encode())
    steps = [*range(0, len(tokens), stride), len(tokens)]
    shown = stream(Bytes(), tokens, [types.POLICY] * len(tokens), steps, types.ANSWERED)
    assert "".join(piece for _, piece in shown) == text and "\N{REPLACEMENT CHARACTER}" not in str(shown)
    assert len(shown) == len(text) or stride > 1


def test_a_broken_character_is_shown_when_its_segment_is_over():
    broken, roles = [*b"a\xe6\x9d", *b"doc"], [types.POLICY] * 3 + [types.DOCUMENT] * 3
    assert stream(Bytes(), broken, roles, [2, 3]) == [("policy", "a")]
    assert stream(Bytes(), broken, roles, [3, 6]) == [("policy", "a"), ("policy", "\ufffd"), ("document", "doc")]
    assert stream(Bytes(), broken[:3], roles[:3], [2, 3], types.OUT_OF_TOKENS)[-1] == ("policy", "\ufffd")


def test_blanks_between_words_are_kept():
    assert stream(Words(), [0, 1, 2], [types.POLICY] * 3, [1, 2, 3]) == [("policy", "a"), ("policy", " b"), ("policy", " c")]


def test_a_rollout_is_shown_token_by_token():
    shown = []
    watch = transcript.Stream(TOKENIZER, lambda role, text: shown.append((role, text)))
    config = make_config(visit_every=1)
    play = make_rollout(POLICY, Library(), TOKENIZER, config, watch=watch, sampler=searching())
    episodes = jax.device_get(play(PARAMS, QUESTIONS[:1], key=jax.random.key(0)))
    pieces = [(role, "".join(text for _, text in part)) for role, part in groupby(shown, lambda piece: piece[0])]
    assert pieces == [(s["role"], s["text"]) for s in transcript.segments(episodes, 0, TOKENIZER)]
    written = [TOKENIZER.decode([token]) for token in episodes.tokens[0][episodes.roles[0] == types.POLICY].tolist()]
    said = [text for role, text in shown if role == "policy"]
    assert len(said) >= len(written) - sum("\ufffd" in text for text in written) and len(said) > 10
