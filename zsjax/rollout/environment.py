"""What is fixed for a rollout: shapes, budgets, the texts that the environment inserts, and tables of the vocabulary."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from zsjax.models.decoder import DecoderConfig
from zsjax.rollout import actions as table
from zsjax.rollout.actions import ACTIONS, SEPARATOR, Action
from zsjax.rollout.draws import draw_tokens
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.sampling.tags import TagAutomaton


@dataclasses.dataclass(frozen=True, eq=False)
class Environment:
    """Shapes, budgets and inserted texts of a rollout. Counts are in tokens, texts are int32 token ids."""

    policy: DecoderConfig
    max_turns: int
    max_turn_tokens: int
    max_tokens: int
    max_query_tokens: int
    num_documents: int
    max_document_tokens: int
    information_open: np.ndarray
    information_close: np.ndarray
    hint: np.ndarray
    actions: tuple[Action, ...] = ACTIONS
    group_size: int = 1
    prefill_batch: int | None = None  # rows that one pass over prompts or documents reads; None: all
    noise_per_document: bool = False
    noise_per_question: bool = False
    cache_dtype: str = "model"  # of the policy's cache: the dtype of its activations, or "int8"
    sampler: Callable = draw_tokens  # (logits, state, key, temperature) -> (tokens, log-probs); tests pass their own

    @property
    def max_queries(self) -> int:
        """Q, the most queries of one action."""
        return max(action.queries for action in self.actions)

    @property
    def max_inserted_documents(self) -> int:
        """The most documents that answer one action."""
        return self.max_queries * self.num_documents


def environment(policy_config, tokenizer, config, group_size: int = 1, sampler=draw_tokens) -> Environment:
    """The `Environment` of a run's config, with texts in the policy's tokens."""
    template = PolicyTemplate.load(config.prompts.policy)

    def encode(text):
        return np.array(tokenizer.encode(text), np.int32)

    return Environment(
        policy=policy_config.for_tokenizer(tokenizer),
        max_turns=config.rollout.max_turns,
        max_turn_tokens=config.rollout.max_turn_tokens,
        max_tokens=config.rollout.max_tokens,
        max_query_tokens=config.search.max_query_tokens,
        num_documents=config.search.num_documents,
        max_document_tokens=config.search.max_document_tokens,
        information_open=encode(template.information_open),
        information_close=encode(template.information_close),
        hint=encode(template.hint),
        actions=table.load_actions(config.rollout.actions),
        group_size=group_size,
        prefill_batch=config.rollout.prefill_batch or None,
        noise_per_document=config.search.noise_per == "document",
        noise_per_question=config.search.noise_per == "question",
        cache_dtype=config.policy.cache_dtype,
        sampler=sampler,
    )


@flax.struct.dataclass
class PolicyTables:
    """Per-token facts of the policy's vocabulary of V tokens."""

    automaton: TagAutomaton
    eos: Any  # bool[V]
    separates: Any = None  # bool[V], the token's bytes hold `SEPARATOR`; None: no action takes several queries


def tables(tokenizer, config: DecoderConfig, actions: Sequence[Action] = ACTIONS) -> PolicyTables:
    """The `PolicyTables` of a tokenizer for a model with V = `config.vocab_size` embedding rows."""
    V, separates = config.vocab_size, None
    eos = jnp.zeros(V, bool).at[jnp.array(list(tokenizer.eos_ids), jnp.int32)].set(True)
    if any(action.queries > 1 for action in actions):
        pieces = [tokenizer.token_bytes(id) if id < tokenizer.vocab_size else None for id in range(V)]
        separates = jnp.array([bool(piece) and SEPARATOR.encode() in piece for piece in pieces])
    return PolicyTables(automaton=TagAutomaton.from_tokenizer(tokenizer, table.tags(actions)), eos=eos, separates=separates)
