"""Judges of documents: a model says yes or no to whether a document helps to answer a question.

Where a judge gives no verdict (another reply, a failed server, a prompt that is too long), the document is useful if it
holds a gold answer (`holds_gold`), and the case is counted. Each (question, document) is judged once.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.models.decoder import DecoderConfig, hidden_states, logits_of
from zsjax.sampling import ragged
from zsjax.search.addresses import authorization
from zsjax.search.engine import Document
from zsjax.search.engines.chat import chat_address, chat_body, reply_text, without_thoughts
from zsjax.search.simulator.prompt import JudgeTemplate
from zsjax.search.transport import DEFAULT_LIMITS, Limits, Request, SearchError, Transport
from zsjax.tuning.collect import Search
from zsjax.tuning.dataset import holds_gold
from zsjax.types import Question

MAX_DOCUMENT = 8000  # characters of a document that a judge reads
CHAT_FAILURES = ("thoughts_only", "thoughts_cut", "declined")
_WORD = re.compile(r"[a-z]+")


def judge_searches(searches: Sequence[Search], judge) -> tuple[list[Search], dict[str, int]]:
    """The searches with a verdict on each document, and counts.

    Args:
      searches: the records.
      judge: (prompt slots [{question, answers, document}]) -> list of True, False, or why there is no verdict
        ("malformed", "failed", "too_long", or how a chat model failed: "thoughts_only", "thoughts_cut", "declined").

    Returns:
      (searches, {"judged": different pairs, "useful": useful ones, "contradicts_containment": verdicts that differ from
      `holds_gold`, and the cases without verdict under their names}).
    """
    pairs: dict[tuple, tuple[Question, Document]] = {}
    for search in searches:
        for document in search.documents:
            pairs.setdefault(_name(search.question, document), (search.question, document))
    said = judge([_slots(question, document) for question, document in pairs.values()])
    counts: collections.Counter = collections.Counter(judged=len(pairs), useful=0, malformed=0, failed=0, too_long=0,
                                                      contradicts_containment=0)
    verdicts = {}
    for (name, (question, document)), verdict in zip(pairs.items(), said, strict=True):
        held = holds_gold(document, question.golden_answers)
        if not isinstance(verdict, bool):
            counts[verdict] += 1
            verdict = held
        counts["useful"] += verdict
        counts["contradicts_containment"] += verdict != held
        verdicts[name] = verdict
    judged = [dataclasses.replace(search, useful=tuple(verdicts[_name(search.question, d)] for d in search.documents))
              for search in searches]
    return judged, dict(counts)


def _name(question, document):
    return question.identity, document.title, document.text


def _slots(question, document):
    text = f"{document.title}. {document.text}" if document.title else document.text
    return {"question": question.question, "answers": question.golden_answers, "document": text[:MAX_DOCUMENT]}


class ChatJudge:
    """A judge behind a server with the OpenAI chat interface, at temperature 0."""

    def __init__(self, url: str, *, model: str, template: JudgeTemplate, key_env: str = "",
                 extra_body: Mapping[str, Any] | None = None, limits: Limits = DEFAULT_LIMITS):
        """url, model, key_env, extra_body, limits, errors: as of `zsjax.search.ChatSimulator`."""
        self._headers, self.url = authorization(key_env, "the judge's server"), chat_address(url)
        self.model, self.template, self.transport = model, template, Transport(limits)
        self.fields = {"temperature": 0.0, "max_tokens": 1024} | dict(extra_body or {})
        chat_body(model, "", self.fields)

    def __call__(self, slots: Sequence[dict]) -> list[bool | str]:
        bodies = [chat_body(self.model, self.template.render(**of_one), self.fields) for of_one in slots]
        replies = self.transport.send([Request(self.url, json=body, headers=self._headers) for body in bodies],
                                      lambda reply: yes_or_no(reply_text(reply)))
        return [reply if not isinstance(reply, SearchError) else reply.kind if reply.kind in CHAT_FAILURES else "failed"
                for reply in replies]


def yes_or_no(text: str) -> bool | str:
    """True or False if the first word after any thoughts is yes or no, else "malformed"."""
    word = _WORD.search(without_thoughts(text).lower())
    return {"yes": True, "no": False}.get(word.group() if word else "", "malformed")


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderJudge:
    """A decoder as judge: True where log p(yes | prompt) > log p(no | prompt), over all tokens of each word.

    Attributes:
      config, params, tokenizer: the decoder.
      template: the prompt.
      chat: put the prompt into the tokenizer's chat template.
      batch_rows: prompts a pass.
      max_tokens: of a prompt; longer ones are "too_long".
    """

    config: DecoderConfig
    params: Any
    tokenizer: Any
    template: JudgeTemplate
    chat: bool = False
    batch_rows: int = 32
    max_tokens: int = 1024

    def __call__(self, slots: Sequence[dict]) -> list[bool | str]:
        prompts = [self._encode(self.template.render(**of_one)) for of_one in slots]
        fitting = [row for row, prompt in enumerate(prompts) if len(prompt) <= self.max_tokens]
        fitting.sort(key=lambda row: len(prompts[row]))  # batches of like lengths, few shapes
        verdicts: list[bool | str] = ["too_long"] * len(prompts)
        for first in range(0, len(fitting), self.batch_rows):
            rows = fitting[first:first + self.batch_rows]
            yes, no = self._logprobs([prompts[row] for row in rows])
            for row, a, b in zip(rows, yes.tolist(), no.tolist(), strict=True):
                verdicts[row] = a > b if np.isfinite([a, b]).all() and a != b else "malformed"
        return verdicts

    def _encode(self, text):
        if self.chat:
            return list(self.tokenizer.apply_chat_template([{"role": "user", "content": text}]))
        return self.tokenizer.encode_prompt(self.tokenizer.plain(text))  # a judge's template is plain text

    def _logprobs(self, prompts):
        """float32[2, R], nats: log p of yes and of no after each of R prompts."""
        words = [self.tokenizer.encode(word if self.chat else f" {word}") for word in ("yes", "no")]
        longest = max(map(len, words))
        size = -(-(max(map(len, prompts)) + longest) // 64) * 64
        filled = ragged.fill(prompts, self.batch_rows)
        tokens = np.zeros((2, len(filled), size), np.int32)
        start, count = np.zeros((2, len(filled)), np.int32), np.zeros((2, len(filled)), np.int32)
        for side, word in enumerate(words):
            for row, prompt in enumerate(filled):
                tokens[side, row, :len(prompt) + len(word)] = [*prompt, *word]
                start[side, row], count[side, row] = len(prompt), len(word)
        tokens, start, count = (x.reshape(-1, *x.shape[2:]) for x in (tokens, start, count))
        sums = self._program(self.params, tokens, start, count, longest)
        return np.asarray(sums).reshape(2, -1)[:, :len(prompts)]

    @functools.cached_property
    def _program(self):
        return jax.jit(functools.partial(continuation_logprobs, self.config), static_argnums=4)


def continuation_logprobs(config: DecoderConfig, params, tokens, start, count, longest: int):
    """float32[B], nats: log p of tokens [start, start + count) of rows int32[B, T]; count int32[B] is at most `longest`.

    Logits are computed at these positions only.
    """
    valid = jnp.arange(tokens.shape[1]) < (start + count)[:, None]
    hidden = hidden_states(params, config, tokens, valid=valid)
    at = start[:, None] + jnp.arange(longest)
    at = jnp.minimum(at, tokens.shape[1] - 1)
    before = jnp.take_along_axis(hidden, at[:, :, None] - 1, axis=1)
    logprobs = jax.nn.log_softmax(logits_of(params, config, before), axis=-1)
    own = jnp.take_along_axis(logprobs, jnp.take_along_axis(tokens, at, axis=1)[:, :, None], axis=2)[:, :, 0]
    return jnp.where(jnp.arange(longest) < count[:, None], own, 0).sum(axis=1)
