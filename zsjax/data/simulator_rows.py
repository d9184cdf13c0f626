"""Rows of published data sets that a search simulator was tuned on: a prompt in the words of ZeroSearch, and documents.

The prompt (arXiv 2505.04588, table 2) says whether the documents are useful or noisy, and names question, answer and query.
Rows of LLaMA-Factory's two forms are read, and those with a prompt and a reply as texts or messages:

    {"instruction": prompt, "input": "", "output": documents}
    {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": documents}]}
    {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": documents}]}
    {"prompt": prompt, "response": documents}
"""

import ast
import dataclasses
import re
from collections.abc import Mapping

from zsjax.data.question_rows import plain
from zsjax.errors import InputError
from zsjax.search.engines.chat import reply_documents

_MODE = re.compile(r"\b(useful|noisy)\s+(?:documents|output|information)", re.IGNORECASE)
# Marks only: a pattern of the whole line would try each of a thousand blanks as its end.
_QUESTION, _ANSWER = re.compile("question:", re.IGNORECASE), re.compile(r"\swhose answer is\s", re.IGNORECASE)
_QUERY = re.compile(r"\s*query:", re.IGNORECASE)
_PROMPTS, _REPLIES = ("prompt", "instruction", "query"), ("response", "completion", "output", "answer")
_USERS, _ASSISTANTS = ("user", "human"), ("assistant", "gpt")
MAX_DOCUMENTS = 100


@dataclasses.dataclass(frozen=True)
class SimulatorRow:
    """One reply of a search engine. question: "" where the prompt names none; golds: () then."""

    question: str
    golds: tuple[str, ...]
    query: str
    noisy: bool
    documents: tuple[str, ...]


def simulator_row(row: Mapping, where: str) -> SimulatorRow:
    """Reads a row; values may be numpy's.

    Args:
      row: field -> value.
      where: file and line, which begin an error.

    Raises:
      InputError: one line with `where` and what is missing.
    """
    prompt, reply = _texts(plain(row))
    if not prompt or not reply:
        raise InputError(f"{where}: has no {'reply' if prompt else 'prompt'} (fields: {', '.join(sorted(map(str, row)))}); "
                         "write it as messages, or as prompt and response")
    lines = prompt.split("\n")
    mode, queries = _MODE.search(prompt), [line[mark.end():].strip() for line in lines if (mark := _QUERY.match(line))]
    if mode is None:
        raise InputError(f"{where}: the prompt says neither useful nor noisy documents; keep the published prompt")
    if not any(queries):
        raise InputError(f"{where}: the prompt has no line 'Query: ...'; keep the published prompt")
    documents = tuple(document.text for document in reply_documents(reply, MAX_DOCUMENTS))
    if not documents:
        raise InputError(f"{where}: the reply has no document; write lines like 'Doc 1: ...'")
    question, golds = next(filter(None, map(_asked, lines)), ("", ()))
    return SimulatorRow(question, golds, next(filter(None, reversed(queries))), mode.group(1).lower() == "noisy", documents)


def _asked(line) -> tuple[str, tuple[str, ...]] | None:
    """(question, answers) of a line "question: ... whose answer is ..."; None for another line."""
    begin = _QUESTION.search(line)
    end = begin and _ANSWER.search(line, begin.end())
    question, answer = (line[begin.end():end.start()].strip(), line[end.end():].strip()) if end else ("", "")
    return (question.strip('"'), _golds(answer.removesuffix(".") or answer)) if question and answer else None


def _texts(row) -> tuple[str, str]:
    """(prompt, reply) of a row; "" for what is not there."""
    for field in ("messages", "conversations"):
        if isinstance(row.get(field), list):
            return _said(row[field], _USERS), _said(row[field], _ASSISTANTS)
    prompt = next((row[name] for name in _PROMPTS if row.get(name)), "")
    reply = next((row[name] for name in _REPLIES if row.get(name)), "")
    prompt = _said(prompt, _USERS) if isinstance(prompt, list) else prompt
    reply = _said(reply, _ASSISTANTS) if isinstance(reply, list) else reply
    more = row.get("input")  # Alpaca's: what the instruction is about
    return "\n".join(filter(None, (str(prompt), more if isinstance(more, str) else ""))), str(reply)


def _said(messages, names) -> str:
    """The last message of a speaker."""
    said = [message.get("content", message.get("value")) for message in messages if isinstance(message, dict)
            and message.get("role", message.get("from")) in names]
    return said[-1] if said and isinstance(said[-1], str) else ""


def _golds(text: str) -> tuple[str, ...]:
    """The answers: a text, or a list as Python prints it."""
    try:
        value = ast.literal_eval(text) if text.startswith("[") else text
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = text
    return tuple(str(each) for each in value) if isinstance(value, list) else (text.strip("\"'"),)
