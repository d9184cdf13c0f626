"""A simulator behind a server with the OpenAI chat interface (SGLang, vLLM, llama.cpp, `transformers serve`).

The prompt is the compiled simulator's, filled with text. A reply is cut and repaired by rule: one document a line, its
number and bullets taken off, blank lines and repetitions dropped, never more than were asked for; what is missing then is
counted ("short_replies") and shows as SEARCH_SHORT or SEARCH_FAILED in the episode.
"""

import os
import re
import zlib
from collections.abc import Sequence

from zsjax.search.engine import Document, Engine, Failed, SearchContext, check_request, first
from zsjax.search.engines.http import MAX_TEXT
from zsjax.search.simulator.prompt import SimulatorTemplate, bare_line
from zsjax.search.transport import DEFAULT_LIMITS, Limits, Request, SearchError, Transport

TOKENS_PER_DOCUMENT = 100


class ChatSimulator(Engine):
    """The simulator as somebody else's server; host rollouts only."""

    def __init__(self, url: str, *, model: str, template: SimulatorTemplate, num_documents: int = 5,
                 temperature: float = 0.8, top_p: float = 1.0, reveal_gold: bool = True, key_env: str = "", seed: int = 0,
                 limits: Limits = DEFAULT_LIMITS):
        """Reads the key.

        Args:
          url: of the server, such as http://localhost:8000/v1 ("/chat/completions" is put behind it).
          model: the name that the server knows the model by.
          template: its prompt.
          num_documents: asked for in the prompt.
          reveal_gold: show the gold answers to the simulator.
          key_env: name of the environment variable with the server's key; "" sends none.
          seed: sent with each request, mixed with what it asks.

        Raises:
          ValueError: key_env is named, and the environment has no such variable.
        """
        self._headers, self.url = authorization(key_env, "the simulator's server"), chat_address(url)
        self.model, self.template, self.num_documents, self.reveal_gold = model, template, num_documents, reveal_gold
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self.transport = Transport(limits)

    def obeys_noise(self, queries: Sequence[str], contexts: Sequence[SearchContext]) -> list[bool]:
        return [True] * len(queries)

    @property
    def counters(self):
        return self.transport.counters

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        """Up to k documents for each query. Equal (question, query, mode) are asked once. Raises as `check_request`."""
        check_request(queries, contexts, k)
        asked = {}
        for query, context in zip(queries, contexts, strict=True):
            asked.setdefault((context.question.id, query.strip(), context.noisy), context)
        replies = self.transport.send([self._request(query, context) for (_, query, _), context in asked.items()],
                                      lambda reply: reply_documents(reply_text(reply), self.num_documents))
        found = {}
        for key, reply in zip(asked, replies, strict=True):
            found[key] = Failed(reply.kind) if isinstance(reply, SearchError) else reply
            self.counters["short_replies"] += len(found[key]) < self.num_documents and not isinstance(reply, SearchError)
        return [first(found[c.question.id, q.strip(), c.noisy], k) for q, c in zip(queries, contexts, strict=True)]

    def _request(self, query: str, context: SearchContext) -> Request:
        question, mode = context.question, "noisy" if context.noisy else "useful"
        answers = question.golden_answers if self.reveal_gold else ()
        prompt = self.template.render(mode=mode, num_documents=self.num_documents, question=question.question,
                                      answers=answers, query=query)
        named = f"{self.seed} {context.call[:1]} {question.id} {mode} {query}"
        return Request(self.url, headers=self._headers, json={
            "model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": self.temperature,
            "top_p": self.top_p, "max_tokens": TOKENS_PER_DOCUMENT * self.num_documents,
            "seed": zlib.crc32(named.encode()) & 0x7FFFFFFF})


def authorization(key_env: str, server: str) -> dict[str, str]:
    """The header with the key in the environment variable `key_env`; none for "". Raises ValueError if it is not set."""
    key = os.environ.get(key_env, "") if key_env else ""
    if key_env and not key:
        raise ValueError(f"{server} needs a key: set the environment variable {key_env}")
    return {"Authorization": f"Bearer {key}"} if key else {}


def chat_address(url: str) -> str:
    """Where chat completions are asked of a server such as http://localhost:8000/v1."""
    return url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


def reply_text(reply) -> str:
    """What the model said, of a server's JSON; KeyError, IndexError or TypeError where that has another form."""
    content = reply["choices"][0]["message"]["content"]
    if not isinstance(content, str):
        raise TypeError("choices[0].message.content is no string")
    return content


def reply_documents(text: str, num_documents: int) -> list[Document]:
    """The documents of a reply: its lines, without numbers, blanks and repetitions, at most num_documents."""
    text = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)  # of models that reason first
    lines = (bare_line(line).strip("*_ ") for line in text.splitlines())
    kept = list(dict.fromkeys(line for line in lines if any(c.isalnum() for c in line)))
    return [Document("", line[:MAX_TEXT]) for line in kept[:num_documents]]
