"""Containers that pass from one stage of the data to the next, and the constants in them.

B rows, T tokens. Rows are right-padded. Every per-token array is [B, T] and speaks of its own token:
`logprobs[b, t] = log p(tokens[b, t] | tokens[b, :t])`, and position 0 is 0. There are no [B, T-1] arrays.

A token's role is written when the token is written and is never inferred afterwards. The loss mask is
`roles == POLICY`; see `zsjax.rl.roles`.
"""

import dataclasses
from typing import Any

import flax.struct

# Roles (int8).
PAD = 0  # beyond the row's length
PROMPT = 1  # instruction and question
POLICY = 2  # sampled from the policy: the only tokens that are trained on or parsed
DOCUMENT = 3  # written by the simulator or a search engine
TEMPLATE = 4  # inserted by the environment: tags around documents, hints
ROLE_NAMES = ("pad", "prompt", "policy", "document", "template")

# Episode status (int8).
RUNNING = 0
ANSWERED = 1  # wrote a complete <answer>...</answer>
OUT_OF_TURNS = 2  # used all turns and did not answer in the last, answer-only generation
ENDED_WITHOUT_ANSWER = 3  # sampled EOS without an action
OUT_OF_TOKENS = 4  # the context was full
STATUS_NAMES = ("running", "answered", "out_of_turns", "ended_without_answer", "out_of_tokens")

# Tags, as ordinary text, around the policy's actions and thoughts and around documents.
SEARCH_TAGS = ("<search>", "</search>")
ANSWER_TAGS = ("<answer>", "</answer>")
INFORMATION_TAGS = ("<information>", "</information>")
THINK_TAGS = ("<think>", "</think>")

# What a turn of an episode did (int8).
NOT_SEARCHED = 0  # the episode has no such turn, or the turn did not search
SEARCH_OK = 1  # all documents
SEARCH_SHORT = 2  # fewer documents than search.num_documents (a malformed simulator reply, a small corpus)
SEARCH_FAILED = 3  # no documents: the engine failed
INVALID_ACTION = 4  # the turn was neither a search nor an answer and was answered by the hint
SEARCH_EMPTY = 5  # no documents: the engine found nothing, or the simulator wrote nothing usable
SEARCH_STATUS_NAMES = ("not_searched", "ok", "short", "failed", "invalid_action", "empty")

# The logit of an embedding row beyond the vocabulary: its exp is 0, and 0 times it is no NaN.
PADDING_LOGIT = -1e30


@dataclasses.dataclass(frozen=True)
class Metric:
    """The description of a number in metrics.jsonl, kept beside the code that logs it; see `zsjax.monitor.catalog`.

    Attributes:
      name: "*" stands for any characters: a family, such as "reward/*".
      help: one line.
      unit: of the number.
      low, high: its range; None: no bound. The report's chart reaches at least from low to high.
      healthy: what a run that goes well shows, such as "below 0.3"; "": nothing in particular.
      alarm: what it means that an alarm on this metric rings; "": there is none by default.
      chart: title of its chart in the report; "": it has none. curve: its name in the chart.
      read_by: who else reads it.
    """

    name: str
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    healthy: str = ""
    alarm: str = ""
    chart: str = ""
    curve: str = ""
    read_by: tuple[str, ...] = ()

    @property
    def readers(self) -> tuple[str, ...]:
        """Everyone who reads it."""
        return (*["report"] * bool(self.chart), *["alarm"] * bool(self.alarm), *self.read_by)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question with every answer that counts as right.

    Attributes:
      id: as in its file; not unique where files were joined.
      key: unique in its source; pairing, statistics and random streams use it. Default: the id.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: dict = dataclasses.field(default_factory=dict)
    key: str = ""

    def __post_init__(self):
        object.__setattr__(self, "key", self.key or self.id)

    @property
    def identity(self) -> tuple:
        """All that an engine's answer to a query may depend on: questions of equal identity may share the answer."""
        return self.key, self.question, tuple(self.golden_answers)


@flax.struct.dataclass
class Episodes:
    """B finished episodes of a rollout, of at most T tokens and M turns."""

    tokens: Any  # int32[B, T], 0 beyond length
    roles: Any  # int8[B, T]
    behavior_logprobs: Any  # float32[B, T], nats, under the sampling distribution; 0 where role is not POLICY
    length: Any  # int32[B]
    status: Any  # int8[B]
    num_searches: Any  # int32[B], searches that were run
    noisy: Any  # bool[B, M, num_documents], the noise draw of each shown document
    search_status: Any  # int8[B, M]
    query_span: Any  # int32[B, M, 2], [start, stop) of the tokens that hold the query, tags included
    documents_span: Any  # int32[B, M, 2], [start, stop) of the DOCUMENT tokens
    episode_id: Any  # int32[B], unique within a step: names the row's random stream
    group_id: Any  # int32[B], rows of one question share it


@flax.struct.dataclass
class TokenBatch:
    """The input of a loss. Arrays are [B, T] unless stated; None where an algorithm does not need them."""

    tokens: Any  # int32[B, T]
    roles: Any  # int8[B, T]
    behavior_logprobs: Any  # float32[B, T], nats
    old_logprobs: Any  # float32[B, T], nats, by the training forward before the update; may be 0 where not POLICY
    ref_logprobs: Any  # float32[B, T] or None, nats
    advantages: Any  # float32[B, T]
    returns: Any  # float32[B, T] or None
    values: Any  # float32[B, T] or None, the value model's predictions before the update
    rewards: Any  # float32[B, T], at the last POLICY token of a row
    group_id: Any  # int32[B]
    row_valid: Any  # bool[B], False for rows that the loss leaves out, or that only fill a shape
    extra: dict = dataclasses.field(default_factory=dict)  # scorer -> float32[B, T] log-probs, of algorithm.scorers


@flax.struct.dataclass
class TrainState:
    """Everything that a resumed RL run needs: a plain pytree, saved whole."""

    step: Any  # int32[]
    params: Any  # the policy
    opt_state: Any
    value_params: Any = None  # PPO only
    value_opt_state: Any = None
    reranker: Any = None  # zsjax.search.rerank.RerankerState, where search.rerank is on
    key: Any = None  # raw key data uint32[2] of the run's root key
    control: Any = None  # dict: state of what follows the run's metrics, see zsjax.rl.steering


def whole_text(value):
    """A text, or a JSON value with all its texts, as UTF-8 can hold it.

    JSON can spell half a character (a text cut by UTF-16 units), which files, sockets and tokenizers cannot take. Pairs
    of surrogates are joined, and a lone one becomes U+FFFD.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return value
    if isinstance(value, dict):
        return {whole_text(name): whole_text(each) for name, each in value.items()}
    return [whole_text(each) for each in value] if isinstance(value, list) else value
