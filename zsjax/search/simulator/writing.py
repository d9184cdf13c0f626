"""The state of a simulator that writes replies, which a rollout carries along."""

from typing import Any

import flax.struct
import jax.numpy as jnp

from zsjax.models.cache import KVCache
from zsjax.sampling.tags import TagAutomaton
from zsjax.types import ANSWER_TAGS, INFORMATION_TAGS, SEARCH_TAGS, THINK_TAGS

ALL_TAGS = (*SEARCH_TAGS, *ANSWER_TAGS, *INFORMATION_TAGS, *THINK_TAGS)


@flax.struct.dataclass
class Replies:
    """Documents of B requests: tokens int32[B, k, N], lengths int32[B, k] (0 beyond count), count int32[B].

    A document is one line; its last token writes the newline.
    """

    tokens: Any
    lengths: Any
    count: Any


@flax.struct.dataclass
class Tally:
    """Counts of the work done so far, one number for each device."""

    read: Any  # int32[1], tokens of prompts that were read
    drawn: Any  # int32[1], tokens drawn
    attended: Any  # float32[1], sum over the drawn tokens of the cached tokens that each attended to


@flax.struct.dataclass
class Writing:
    """The state of S slots of requests.

    B is S, or 2 S where each document has a mode: the useful replies of all requests, then the noisy ones.
    """

    cache: KVCache
    hidden: Any  # [B, D], at the slot's last token
    documents: Any  # int32[B, k, N]
    lengths: Any  # int32[B, k]
    count: Any  # int32[B], documents finished
    tag_state: Any  # int32[B], of the automaton
    step: Any  # int32[B], tokens drawn for the request
    keys: Any  # uint32[B, 2], key data of the request
    unfinished: Any  # bool[B], the reply is being written
    noisy: Any  # bool[S] or bool[S, shown documents], the requests' modes
    asked: Any  # (question, query) of the S requests, ragged, for a reranker
    steps: Any  # int32[1], decode steps so far (one number for each device)
    tally: Tally

    @property
    def working(self):
        """bool[S]: requests with an unfinished reply."""
        return self.unfinished.reshape(-1, len(self.noisy)).any(axis=0)


@flax.struct.dataclass
class SimulatorTables:
    """Per-token facts of the simulator's vocabulary, V embedding rows; False for rows without a token."""

    automaton: TagAutomaton
    ends_line: Any  # bool[V], the token's bytes hold a newline
    blank: Any  # bool[V], nothing but white space
    eos: Any  # bool[V]
    special: Any  # bool[V], neither text nor EOS: never written


def make_tables(tokenizer, vocab_size: int) -> SimulatorTables:
    """The tables of a tokenizer for a model with V = vocab_size embedding rows."""
    pieces = _pieces(tokenizer, vocab_size)
    return SimulatorTables(
        automaton=TagAutomaton.from_tokenizer(tokenizer, ALL_TAGS),
        ends_line=line_ends(tokenizer, vocab_size),
        blank=jnp.array([p is not None and not p.strip() for p in pieces]),
        eos=(eos := jnp.zeros(vocab_size, bool).at[jnp.array(list(tokenizer.eos_ids), jnp.int32)].set(True)),
        special=jnp.array([p is None for p in pieces]) & ~eos,
    )


def line_ends(tokenizer, vocab_size: int):
    """bool[V], the tokens whose bytes hold a newline."""
    return jnp.array([bool(p) and b"\n" in p for p in _pieces(tokenizer, vocab_size)])


def _pieces(tokenizer, vocab_size):
    return [tokenizer.token_bytes(i) if i < tokenizer.vocab_size else None for i in range(vocab_size)]
