"""Tags in ordinary text, seen token by token: an automaton over bytes, lifted to the vocabulary.

A byte-level vocabulary spells a tag such as `</search>` in many ways, and the edges of a tag merge with the text around
it (tokens of Qwen2: ` </`, `></`, `>.\\n`). `TagAutomaton` follows the bytes that tokens write. A tag is seen exactly when
its last byte is written, however tokens spell it: the events equal a search for the tags' bytes in the joined bytes of
the tokens (Aho and Corasick 1975). `extract` cuts out the text between two tags.

The automaton is a pytree with tables of [states, V]. Pass it to jitted functions as an argument. In a closure its tables
(about 25 MB for V = 151,646) become constants of the program.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from zsjax.sampling.splice import concatenate
from zsjax.sampling.tag_tables import build_tables
from zsjax.types import ANSWER_TAGS, SEARCH_TAGS

TAGS = (*SEARCH_TAGS, *ANSWER_TAGS)


@flax.struct.dataclass
class TagAutomaton:
    """Says which tag a token completes, given the tokens before it. State 0 is the start, and follows a reset.

    A token without bytes (special tokens, ids outside of 0 .. V-1) completes nothing and resets the state, so no tag
    spans it. Overlapping occurrences count; a tag does not reset the state. If a token completes several tags, the one
    that ends last is reported, and of those that end at the same byte the longest.

    Attributes:
      next_state: int16[S, V].
      event: int8[S, V], i + 1 where the token completes `tags[i]`, else 0.
      token_bytes_len: int32[V], bytes that a token writes; 0 for tokens without bytes.
      event_tail: int16[S, V], bytes of the token behind the reported tag.
      blank: bool[V], the token writes white space only.
      one_blank, begins_blank: bool[V], the token is one blank, and its first byte is white space.
      stripped_len: int32[V], bytes without the white space at the token's end.
      cut_row: int32[V], the row of the spelling tables for a cut at byte 0 of the token; -1 for tokens that are never
        cut. The row of a cut at byte j is cut_row + j.
      before_ids, after_ids, alone_ids: int32[R, K], tokens that spell a cut token's bytes [0, j), [j, end), and [j, end)
        if no text follows, without the white space at the outer ends.
      before_len, after_len, alone_len: int32[R].
      tags: the tags.
    """

    next_state: Any
    event: Any
    token_bytes_len: Any
    event_tail: Any
    blank: Any
    one_blank: Any
    begins_blank: Any
    stripped_len: Any
    cut_row: Any
    before_ids: Any
    before_len: Any
    after_ids: Any
    after_len: Any
    alone_ids: Any
    alone_len: Any
    tags: tuple[str, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def from_tokenizer(cls, tokenizer, tags: Sequence[str] = TAGS) -> "TagAutomaton":
        """Builds the tables, in about 2 CPU seconds for a vocabulary of 151,646.

        Args:
          tokenizer: with `vocab_size`, `token_bytes(id) -> bytes | None`, `encode`.
          tags: different, non-empty texts.

        Raises:
          InputError: equal or empty tags, or a tag that the tokenizer spells with a special token, which has no bytes.
        """
        return _from_tokenizer(tokenizer, tuple(tags))

    @classmethod
    def _build(cls, tokenizer, tags: tuple[str, ...]) -> "TagAutomaton":
        arrays = build_tables(tokenizer, tags)
        with jax.ensure_compile_time_eval():  # arrays, not tracers, also if first used inside a trace
            return cls(**{name: jnp.asarray(array) for name, array in arrays.items()}, tags=tags)

    def step(self, state: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One token per row.

        Args:
          state: int32[...], 0 at the start.
          tokens: int32[...] of the same shape.

        Returns:
          (state int32[...], event int8[...]: i + 1 if the token completes `tags[i]`, else 0).
        """
        known, at = self._known(tokens)
        zero = jnp.zeros((), jnp.int32)
        return (jnp.where(known, self.next_state[state, at].astype(jnp.int32), zero),
                jnp.where(known, self.event[state, at], zero.astype(jnp.int8)))

    def events(self, tokens: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """int8[B, T] of tokens int32[B, T]: i + 1 where token t writes the last byte of `tags[i]`, else 0.

        valid: bool[B, T] or None; other tokens complete nothing and reset the state.
        """
        if valid is not None:
            tokens = jnp.where(valid, tokens, -1)
        return self.step(self._states(tokens), tokens)[1]

    def forbidden(self, state: jax.Array) -> jax.Array:
        """bool[B, V]: the tokens that would complete a tag in state int32[B]."""
        return self.event[state] > 0

    def _known(self, tokens):
        size = self.token_bytes_len.shape[0]
        return (tokens >= 0) & (tokens < size), jnp.clip(tokens, 0, size - 1)

    def _states(self, tokens):
        """int32[B, T], the state before each token.

        A state is the longest suffix of the text that begins a tag, so it depends on as many bytes as the longest tag
        has. Every token writes a byte or resets, so looking back at as many tokens is enough. All positions are computed
        at once: 9 gathers of [B, T] instead of a scan of T dependent steps.
        """
        depth = max(len(tag.encode()) for tag in self.tags)
        length = tokens.shape[1]
        padded = jnp.pad(tokens, ((0, 0), (depth, 0)), constant_values=-1)
        state = jnp.zeros(tokens.shape, jnp.int32)
        for back in range(depth):
            state, _ = self.step(state, padded[:, back:back + length])
        return state


@functools.lru_cache(maxsize=8)  # a run makes several rollouts with one tokenizer; 262,144 tokens take 6 CPU seconds
def _from_tokenizer(tokenizer, tags):
    return TagAutomaton._build(tokenizer, tags)


def extract(automaton: TagAutomaton, tokens: jax.Array, lengths: jax.Array, *, open_tag: int, close_tag: int,
            size: int) -> tuple[jax.Array, jax.Array]:
    """The tokens between a row's last complete open tag and the close tag that its last token completes.

    Whole tokens are copied. A token that holds a tag's edge and text is respelled from tables: the bytes behind the open
    tag, or before the close tag. White space at the ends is dropped, but a blank before the first word stays. Tokens
    without bytes are left out.

    Limits: if one token holds the end of the open tag and the beginning of the close tag, the row has no text. An open
    tag is overlooked if one token completes it and then another tag. White space is recognised token by token, so a
    blank beyond ASCII that several tokens spell remains.

    Args:
      automaton: of the tokens' vocabulary.
      tokens: int32[B, N], one generation, begun in state 0.
      lengths: int32[B], up to and with the token that completed the close tag.
      open_tag, close_tag: positions in `automaton.tags`.
      size: tokens per returned row; a longer text is cut at its end.

    Returns:
      (ids int32[B, size], 0 beyond the length; length int32[B], 0 if the text is blank or there is none).
    """
    B, N = tokens.shape
    at = jnp.arange(N, dtype=jnp.int32)[None, :]
    inside = at < lengths[:, None]
    tokens = jnp.where(inside, tokens, -1)
    known, ids = automaton._known(tokens)
    state = automaton._states(tokens)
    _, event = automaton.step(state, tokens)
    tail = automaton.event_tail[state, ids].astype(jnp.int32)
    num_bytes = jnp.where(known, automaton.token_bytes_len[ids], 0)
    stop = jnp.cumsum(num_bytes, axis=1)  # where a token's bytes end
    start = stop - num_bytes

    def pick(array, index):
        return jnp.take_along_axis(array, index[:, None], axis=1)[:, 0]

    last = jnp.clip(lengths - 1, 0, N - 1)
    closed = (lengths > 0) & (pick(event, last) == close_tag + 1)
    text_stop = pick(stop - tail, last) - len(automaton.tags[close_tag].encode())
    opens = (event == open_tag + 1) & (stop - tail <= text_stop[:, None])
    opening = jnp.max(jnp.where(opens, at, -1), axis=1)
    found = closed & (opening >= 0)
    opening = jnp.maximum(opening, 0)
    text_start = pick(stop - tail, opening)
    found &= pick(stop, opening) <= text_stop

    # The three parts: the rest of the opening token, whole tokens, and the beginning of the closing token.
    no_row = jnp.full((B,), -1, jnp.int32)
    after_row = pick(automaton.cut_row[ids], opening) + pick(num_bytes - tail, opening)
    after_row = jnp.where(found & (pick(tail, opening) > 0), after_row, no_row)
    left, left_length = _spelled(automaton.after_ids, automaton.after_len, after_row)

    cut = (start < text_stop[:, None]) & (stop > text_stop[:, None]) & (start >= text_start[:, None])
    cutting = jnp.argmax(cut, axis=1)
    before_row = pick(automaton.cut_row[ids], cutting) + text_stop - pick(start, cutting)
    before_row = jnp.where(found & cut.any(axis=1), before_row, no_row)
    right, right_length = _spelled(automaton.before_ids, automaton.before_len, before_row)

    whole = found[:, None] & (start >= text_start[:, None]) & (stop <= text_stop[:, None]) & (num_bytes > 0)
    worded = whole & ~automaton.blank[ids]
    first_word = jnp.where(left_length > 0, 0, jnp.min(jnp.where(worded, at, N), axis=1))
    last_word = jnp.max(jnp.where(worded, at, -1), axis=1)
    # The blank before a first word without one, such as a number: " 1990" is encoded with a token for it.
    begin = jnp.minimum(first_word, jnp.where(cut.any(axis=1), cutting, N))
    spaced = (begin < N) & ~pick(automaton.begins_blank[ids], jnp.minimum(begin, N - 1)) & pick(
        automaton.one_blank[ids], jnp.maximum(begin - 1, 0)) & ((last_word >= 0) | (right_length > 0))
    first_word = jnp.where(spaced & (left_length == 0), begin - 1, first_word)
    whole &= (at >= first_word[:, None]) & ((right_length > 0)[:, None] | (at <= last_word[:, None]))
    alone, alone_length = _spelled(automaton.alone_ids, automaton.alone_len, after_row)
    is_alone = (last_word < 0) & (right_length == 0)
    left = jnp.where(is_alone[:, None], alone, left)
    left_length = jnp.where(is_alone, alone_length, left_length)

    # A last word that ends in white space (the token `.\n`) is spelled without it.
    ending = jnp.maximum(last_word, 0)
    kept = pick(automaton.stripped_len[ids], ending)
    strip = (right_length == 0) & (last_word >= 0) & (kept < pick(num_bytes, ending))
    strip_row = pick(automaton.cut_row[ids], ending) + kept
    bare, bare_length = _spelled(automaton.before_ids, automaton.before_len, jnp.where(strip, strip_row, no_row))
    whole &= ~(strip[:, None] & (at == ending[:, None]))
    right = jnp.where(strip[:, None], bare, right)
    right_length = jnp.where(strip, bare_length, right_length)

    order = jnp.where(whole, jnp.cumsum(whole, axis=1) - 1, N)
    body = jnp.zeros((B, N), jnp.int32).at[jnp.arange(B)[:, None], order].set(ids, mode="drop")
    pieces = [(left, left_length), (body, whole.sum(axis=1)), (right, right_length)]
    return concatenate(pieces, size=size)


def _spelled(ids, lengths, row):
    """Rows of a spelling table; row -1 is empty."""
    at = jnp.maximum(row, 0)
    return ids[at], jnp.where(row >= 0, lengths[at], 0)
