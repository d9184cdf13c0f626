"""A simulator behind a server with the OpenAI chat interface (SGLang, vLLM, llama.cpp, `transformers serve`).

The prompt is the compiled simulator's, filled with text. Rules cut a reply into documents, one on each line. They drop
numbers, bullets, thoughts, sentences around the documents, blank lines, repetitions, and documents beyond the number
asked for. A reply with too few documents is counted ("short_replies") and recorded as SEARCH_SHORT or SEARCH_EMPTY.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from zsjax.errors import InputError
from zsjax.search import registry
from zsjax.search.addresses import authorization, check_address
from zsjax.search.engine import Document, Engine, Failed, SearchContext, check_request, first
from zsjax.search.engines.http import MAX_TEXT
from zsjax.search.simulator.prompt import SimulatorTemplate, bare_line
from zsjax.search.simulator.requests import check_reveal_gold, gold_shown
from zsjax.search.transport import DEFAULT_LIMITS, Limits, Request, SearchError, Transport

TOKENS_PER_DOCUMENT = 100
_NAME = r"(?:doc(?:ument)?|passage|result|snippet)"
_NUMBERED = re.compile(rf"\W*(?:{_NAME}\W{{0,3}}(?:\d{{1,2}}\b|:)|\d{{1,2}}\W{{0,3}}[:.)\]](?!\d))", re.IGNORECASE)
_LABEL = re.compile(rf"\W*{_NAME}\W{{0,3}}\d{{1,2}}(?:\s*\(\w+\))?\W*", re.IGNORECASE)  # a number alone on its line
_LABELLED = re.compile(rf"\W*{_NAME}\W{{0,3}}\d{{1,2}}(?:\s*\(\w+\))?\W{{0,2}}[:.)\]\-–—]\W*", re.IGNORECASE)
_BULLET = re.compile(r"[-*•]\s")
# Sentences that announce or close the documents.
_ABOUT = re.compile(
    r"\W*(?:(?:sure|certainly|of course|okay|here|below|the following|these|those|note|please note|as an ai|as requested|"
    r"based on (?:the|your)|i(?: will|'ll|’ll| have|'ve|’ve| can| am|'m|’m)?)\b.*\b(?:documents?|results?)\b|"
    r"(?:search results|(?:useful |noisy )?documents?|the (?:\w+ )?(?:documents|results) (?:are|is|follow)\b.*|"
    r"</?\w+>)\W*$|(?:i hope|let me know|feel free|is there anything|do you need|would you like)\b)", re.IGNORECASE)
# The beginning of a refusal.
_REFUSAL = re.compile(r"\W*(?:i(?:'m|’m| am) (?:very |so )?sorry|sorry,|"
                      r"i (?:can't|can’t|cannot|can not|am unable|won't|won’t)\b|"
                      r"i(?:'m|’m| am) (?:unable|not able)\b)", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_THOUGHTS_BEGIN, _THOUGHTS_END = re.compile(r"<think(?:ing)?>|\[THINK\]"), re.compile(r"</think(?:ing)?>|\[/THINK\]")
_ADVICE = ("switch its thinking off by extra_body, such as {'chat_template_kwargs': {'enable_thinking': False}}, or raise "
           "max_tokens")


class ChatSimulator(Engine):
    """A simulator on a server, for rollouts that the host drives."""

    def __init__(self, url: str, *, model: str, template: SimulatorTemplate, num_documents: int = 5,
                 temperature: float = 0.8, top_p: float = 1.0, reveal_gold: str = "always", key_env: str = "", seed: int = 0,
                 max_tokens: int | None = None, extra_body: Mapping[str, Any] | None = None,
                 limits: Limits = DEFAULT_LIMITS):
        """Reads the key.

        Args:
          url: of the server, such as http://localhost:8000/v1 ("/chat/completions" is appended).
          model: its name on the server.
          template: its prompt.
          num_documents: documents that the prompt asks for.
          reveal_gold: when the simulator is shown the gold answers, see `zsjax.search.simulator.requests.gold_shown`. A
            query is on target if at least half of its words are in the question.
          key_env: name of the environment variable with the server's key; "" sends none.
          seed: mixed with the request's content and sent with it.
          max_tokens: of a reply, thoughts included; None is 100 for each document.
          extra_body: further fields of a request, such as {"chat_template_kwargs": {"enable_thinking": False}}. A field
            with None is not sent.

        Raises:
          InputError: the url is not an address; the environment has no variable key_env; reveal_gold is unknown; or
            extra_body sets a field that the simulator sets (model, messages).
        """
        self._headers, self.url = authorization(key_env, "the simulator's server"), chat_address(url)
        self.model, self.template, self.num_documents, self.reveal_gold = model, template, num_documents, reveal_gold
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self.max_tokens, self.extra_body = max_tokens or TOKENS_PER_DOCUMENT * num_documents, dict(extra_body or {})
        chat_body(model, "", self.extra_body)
        check_reveal_gold(reveal_gold)
        self.transport = Transport(limits)

    def obeys_noise(self, queries: Sequence[str], contexts: Sequence[SearchContext]) -> list[bool]:
        return [True] * len(queries)

    @property
    def counters(self):
        return self.transport.counters

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        """Up to k documents for each query. Equal (question, query, mode) are sent once. Raises as `check_request`."""
        check_request(queries, contexts, k)
        asked = {}
        for query, context in zip(queries, contexts, strict=True):
            asked.setdefault((context.question.identity, query.strip(), context.noisy), context)
        replies = self.transport.send([self._request(query, context) for (_, query, _), context in asked.items()],
                                      self._documents)
        found = {}
        for key, reply in zip(asked, replies, strict=True):
            found[key] = Failed(reply.kind) if isinstance(reply, SearchError) else reply
            self.counters["short_replies"] += len(found[key]) < self.num_documents and not isinstance(reply, SearchError)
        return [first(found[c.question.identity, q.strip(), c.noisy], k) for q, c in zip(queries, contexts, strict=True)]

    def _documents(self, reply) -> list[Document]:
        text = reply_text(reply)
        if _REFUSAL.match(text) and not any(map(_NUMBERED.match, text.splitlines())):
            raise SearchError("declined", "the chat model declined to answer; change the prompt")
        # Thoughts may have no tags. The prompt shows numbered documents: without a number, no document was begun.
        if reply["choices"][0].get("finish_reason") == "length" and "Doc 1" in self.template.text and not any(
                map(_NUMBERED.match, text.splitlines())):
            raise SearchError("thoughts_cut", f"the chat model was cut by max_tokens before its first document; {_ADVICE}")
        return reply_documents(text, self.num_documents)

    def _request(self, query: str, context: SearchContext) -> Request:
        question, mode = context.question, "noisy" if context.noisy else "useful"
        shown = gold_shown(self.reveal_gold, context.noisy, _on_target(query, question.question))
        answers = question.golden_answers if shown else ()
        prompt = self.template.render(mode=mode, num_documents=self.num_documents, question=question.question,
                                      answers=answers, query=query)
        named = f"{self.seed} {context.call[:1]} {question.id} {mode} {query}"
        return Request(self.url, headers=self._headers, json=chat_body(self.model, prompt, {
            "temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens,
            "seed": zlib.crc32(named.encode(errors="replace")) & 0x7FFFFFFF} | self.extra_body,
            self.template.system_messages))


def _on_target(query: str, question: str) -> bool:
    """Whether at least half of the query's words are in the question."""
    words, known = _WORD.findall(query.lower()), set(_WORD.findall(question.lower()))
    return bool(words) and 2 * sum(word in known for word in words) >= len(words)


def chat_address(url: str) -> str:
    """The address of chat completions on a server such as http://localhost:8000/v1. Raises as `check_address`."""
    return check_address(url, "http://HOST:PORT/v1").rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


def chat_body(model: str, prompt: str, fields: Mapping[str, Any], earlier: Sequence[Mapping[str, str]] = ()) -> dict:
    """The JSON of a request, without fields that are None. Raises InputError if `fields` has model or messages.

    earlier: messages before the user's prompt.
    """
    body = {"model": model, "messages": [*earlier, {"role": "user", "content": prompt}]}
    if body.keys() & fields.keys():
        raise InputError(f"extra_body sets {sorted(body.keys() & fields.keys())}, which the request itself sets; remove it")
    return body | {name: value for name, value in fields.items() if value is not None}


def reply_text(reply) -> str:
    """The text of a server's JSON reply, without thoughts.

    Raises:
      SearchError: thoughts_only, thoughts_cut, declined.
      KeyError, IndexError, TypeError or AttributeError: the reply has another form.
    """
    choice = reply["choices"][0]
    message, cut = choice["message"], choice.get("finish_reason") == "length"
    content, thoughts = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    if isinstance(content, list):  # parts, some of them thoughts
        content, parts = "".join(part["text"] for part in content if part["type"] == "text"), content
        thoughts = thoughts or len(parts) > 0
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise SearchError("declined", "the chat model or its server's filter declined to answer; change the prompt")
    if not (content or thoughts) and cut:  # a server that keeps the thoughts to itself
        thoughts = True
    if not isinstance(content or "", str) or content is None and not thoughts:
        raise TypeError("choices[0].message.content is not a string")
    said = without_thoughts(content or "")
    if not said.strip() and (thoughts or (content or "").strip()):
        raise SearchError("thoughts_cut" if cut else "thoughts_only",
                          f"the chat model {'was cut by max_tokens while it thought' if cut else 'only thought'}; {_ADVICE}")
    return said


def without_thoughts(text: str) -> str:
    """The text behind a model's thoughts. Where the chat template opened them, only their end is marked."""
    return _THOUGHTS_BEGIN.split(_THOUGHTS_END.split(text)[-1], maxsplit=1)[0]


def reply_documents(text: str, num_documents: int) -> list[Document]:
    """The documents of a reply, at most num_documents, without numbers and repetitions.

    Where lines have numbers (or bullets), each of them begins a document, and text before the first one is dropped.
    Elsewhere each line is a document. Lines that only announce or close the documents are dropped.
    """
    lines = [line.strip() for line in without_thoughts(text).splitlines()]
    lines = [line for line in lines if any(c.isalnum() for c in line) and not line.startswith("```")]
    starts = next((mark for mark in (_NUMBERED, _BULLET) if any(map(mark.match, lines))), None)
    documents: list[list[str]] = []
    for line in lines:
        if starts and starts.match(line):
            documents.append(["" if _LABEL.fullmatch(line) else _without_number(line)])
        elif not _ABOUT.match(line) and (starts is None and not line.endswith(":")):
            documents.append([_without_number(line)])
        elif not _ABOUT.match(line) and starts and documents:
            documents[-1].append(line)
    kept = dict.fromkeys(" ".join(filter(None, parts)) for parts in documents)
    return [Document("", text[:MAX_TEXT]) for text in kept if any(c.isalnum() for c in text)][:num_documents]


def _without_number(line: str) -> str:
    """A document's first line without its number or bullet, and without a bold mark that the number leaves behind."""
    label = _LABELLED.match(line)
    bare = (line[label.end():] if label else bare_line(line)).strip()
    return bare if bare.count("**") % 2 == 0 and not bare.startswith("_") else bare.replace("**", "", 1).strip("*_ ")


@registry.engine("chat", "a simulator behind an OpenAI-style server (SGLang, vLLM, llama.cpp, `transformers serve`)",
                 needs=("url", "served_model", "key", "prompt"), is_real=False)
def _chat(setting):
    search = setting.config.search
    return ChatSimulator(
        search.remote.url, model=search.remote.model, template=SimulatorTemplate.load(setting.config.prompts.simulator),
        num_documents=search.num_candidates, temperature=search.temperature, top_p=search.top_p,
        reveal_gold=search.reveal_gold, key_env=search.remote.key_env, seed=setting.config.seed,
        max_tokens=search.remote.max_tokens, extra_body=search.remote.extra_body, limits=setting.limits)
