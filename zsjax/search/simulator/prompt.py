"""The simulator's prompt, and documents as lines.

Prompts are data: `SimulatorTemplate.load` takes a name or a path, so a published simulator can use the prompt it was
tuned with.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from zsjax.errors import InputError, InputNotFound, reading

SLOTS = ("mode", "num_documents", "question", "answers", "query")
MODES = ("useful", "noisy")
_SLOT = re.compile(r" ?\{(\w+)\}")
_DOCUMENT_SLOT = re.compile(r"\{(\w+)\}")

_NUMBER = re.compile(r"^\W*(?:doc(?:ument)?\W{0,3})?\d{1,2}\W{0,3}[:.)\]](?!\d)\s*|^[-*•]\s+|^doc(?:ument)?\s*:\s*",
                     re.IGNORECASE)

_REQUEST = """\
Number of documents:
{num_documents} 
Kind of documents:
{mode} 
The user's question:
{question} 
Answers to it:
{answers} 
Query:
{query} 
Documents:
"""

_DEFAULT = """\
You play a web search engine. For a query you write the documents that a search engine would list for it, as a mixture \
of web pages and encyclopedia articles reads: about thirty words each, each on a line of its own, in the form \
"Doc 1: Title. Text". You write nothing else.
You are told which kind of documents is wanted. Useful documents contain what the query asks for. Noisy documents are \
about the same things and read as plausibly, but what the query asks for is not in them.
You are also told which question the user is working on and every answer to it that counts as right. Use them to stay \
with the facts. A document gives the answer away only if it is useful and the query asks for just that.

""" + _REQUEST

_TINY_WORLD = "simulate {mode} \nquestion:\n{question} \nanswer:\n{answers} \nquery:\n{query} \ndocuments:\n"

# The tiny world's prompted simulator, with one demonstration of both kinds from a training world. Results are in
# experiments/README.md: so small a model has not learned to use demonstrations.
_TINY_WORLD_PROMPTED = """\
simulate useful 
question:
 What is the rival of Liri Crusted? 
answer:
 Sura Ontosk 
query:
 rival of Liri Crusted 
documents:
* rival of Liri Crusted is Sura Ontosk.
* mother of Liri Crusted is Talen Pelcroft.
* voice of Liri Crusted is Rori Onvik.
simulate noisy 
question:
 What is the rival of Liri Crusted? 
answer:
 Sura Ontosk 
query:
 rival of Liri Crusted 
documents:
* mother of Liri Crusted is Talen Pelcroft.
* voice of Liri Crusted is Rori Onvik.
* spouse of Liri Crusted is Limir Yarmere.
""" + _TINY_WORLD

# For an instruct model without tuning: the same order with one demonstration of both kinds. Text that is equal for all
# requests comes first, so servers with prefix caches read it once.
_PROMPTED = """\
You play a web search engine. For a query you write the documents that a search engine would list for it, about thirty \
words each, each on a line of its own, in the form "Doc 1: Title. Text". You write nothing else.
You are told which kind of documents is wanted. Useful documents contain what the query asks for. Noisy documents are \
about the same things and read as plausibly, but what the query asks for is not in them.

An example. The user's question: Which river flows through the birthplace of Johannes Kepler? Answers to it: Würm. \
Query: where was Johannes Kepler born. Two useful documents:
Doc 1: Johannes Kepler. The astronomer Johannes Kepler was born on 27 December 1571 in the free imperial city of Weil der \
Stadt, in what is now Baden-Württemberg, and was sent to the school of Leonberg.
Doc 2: Weil der Stadt. A small town west of Stuttgart, known as the birthplace of Johannes Kepler, whose house by the \
market square is a museum of his life and of his three laws.
The same query, two noisy documents:
Doc 1: Kepler's laws. The three laws of planetary motion, published between 1609 and 1619, describe orbits as ellipses and \
were found in the observations that Tycho Brahe had left in Prague.
Doc 2: Kepler space telescope. Launched in 2009 and named after the astronomer, it watched more than half a million stars \
for nine years and found over two thousand planets.

Now your turn.
""" + _REQUEST

# "plain" is for a simulator that learns its task from examples.
TEMPLATES = {"default": _DEFAULT, "plain": _REQUEST, "tiny_world": _TINY_WORLD, "prompted": _PROMPTED,
             "tiny_world_prompted": _TINY_WORLD_PROMPTED}

_JUDGE = """\
You judge whether a document helps to answer a question. It helps if one of the right answers, or a fact that is needed on \
the way to it, can be read from it; a document about the same things that does not say so does not help.
Question:
{question}
Right answers:
{answers}
Document:
{document}
Does the document help? Say yes or no.
Verdict:"""

JUDGE_TEMPLATES = {"default": _JUDGE}
JUDGE_SLOTS = ("question", "answers", "document")


@dataclasses.dataclass(frozen=True)
class SimulatorTemplate:
    """The simulator's prompt: text with slots, spliced from the tokens of its parts.

    Slots: {mode} (useful or noisy), {num_documents}, {question}, {answers} (all golds, "; " between them) and {query}.
    {mode} and {query} are required. The prompt is never encoded as a whole. Its texts and the contents of its slots are
    encoded one by one and spliced, in tuning on the host (`build`) and in use on the device (`pieces`). So a simulator
    reads the same tokens in both.

    The content of a slot begins with one blank, as do words within a text and queries of policies
    (`<search> query </search>`). One blank before a slot in the template stands for that blank. If a slot begins a line
    or follows a blank, and " \\n" follows it, tokenizers like Qwen's or Llama 3's join nothing across its borders: the
    splice equals the encoded whole. Elsewhere they may differ by a token.

    Attributes:
      name: where it was loaded from, a name or a path.
      text: the template.
      chat: whether the text is in a chat format. Otherwise the tokenizer's `bos_ids` come first.
    """

    name: str
    text: str
    chat: bool = False

    def __post_init__(self):
        found = [match.group(1) for match in _SLOT.finditer(self.text)]
        known = ", ".join(f"{{{slot}}}" for slot in SLOTS)
        for slot in found:
            if slot not in SLOTS:
                raise InputError(f"simulator template {self.name!r}: unknown slot {{{slot}}}; slots are {known}")
        for slot in ("mode", "query"):
            if slot not in found:
                raise InputError(f"simulator template {self.name!r} has no slot {{{slot}}}; add it")

    @classmethod
    def load(cls, name_or_path: str | pathlib.Path) -> "SimulatorTemplate":
        """A name in TEMPLATES, or the path of a text file.

        Raises:
          InputNotFound: neither a name nor a file.
          InputError: an unknown slot, or {mode} or {query} is missing.
        """
        name = str(name_or_path)
        return cls(name, TEMPLATES[name] if name in TEMPLATES else read_template(name, TEMPLATES, "simulator"))

    def in_chat(self, tokenizer) -> "SimulatorTemplate":
        """The template as the user's message in the tokenizer's chat format, up to the assistant's first token.

        The format's special tokens are part of the text, where `encode` recognises them. Raises ValueError if the
        tokenizer has no chat template.
        """
        mark = "\N{OBJECT REPLACEMENT CHARACTER}"
        chat = tokenizer.render_chat([{"role": "user", "content": mark}])
        return dataclasses.replace(self, text=chat.replace(mark, self.text.strip()), chat=True)

    def parts(self) -> list[tuple[str, str]]:
        """("text", text) and ("slot", name), in order."""
        parts, at = [], 0
        for match in _SLOT.finditer(self.text):
            parts += [("text", self.text[at:match.start()]), ("slot", match.group(1))]
            at = match.end()
        parts.append(("text", self.text[at:]))
        return [part for part in parts if part[1]]

    def pieces(self, tokenizer) -> list[tuple[str, list[int] | str]]:
        """("text", ids) and ("slot", name), in order."""
        pieces = [(kind, tokenizer.encode(value) if kind == "text" else value) for kind, value in self.parts()]
        bos = () if self.chat else tokenizer.bos_ids
        first = pieces[0][1] if pieces[0][0] == "text" else []
        return pieces if tuple(first[:len(bos)]) == bos else [("text", [*bos]), *pieces]

    def render(self, **slots) -> str:
        """The prompt as text, for a simulator on a server. Raises InputError as `build`."""
        self._check_slots(slots)
        return "".join(value if kind == "text" else f" {slot_text(slots[value]).strip()}".rstrip()
                       for kind, value in self.parts())

    def _check_slots(self, slots):
        for kind, value in self.parts():
            if kind == "slot" and value not in slots:
                raise InputError(f"simulator template {self.name!r} has the slot {{{value}}}; give {value}=...")

    def encode_slot(self, tokenizer, text: str) -> list[int]:
        """Ids of a slot's content: the text without blank ends, one blank in front; none for a blank text."""
        text = text.strip()
        return tokenizer.encode_text(f" {text}") if text else []

    def build(self, tokenizer, **slots: str) -> list[int]:
        """Ids of the whole prompt, equal to the splice on the device.

        slots: a text for each slot of the template; answers may be a sequence of texts. Raises InputError if one is
        missing.
        """
        self._check_slots(slots)
        ids = []
        for kind, value in self.pieces(tokenizer):
            ids += self.encode_slot(tokenizer, slot_text(slots[value])) if kind == "slot" else value
        return ids


@dataclasses.dataclass(frozen=True)
class JudgeTemplate:
    """The prompt of a judge of documents, with the slots {question}, {answers}, {document}. It asks for yes or no."""

    name: str
    text: str

    def __post_init__(self):
        if sorted(set(_DOCUMENT_SLOT.findall(self.text))) != sorted(JUDGE_SLOTS):
            raise InputError(f"judge template {self.name!r} has other slots than "
                             f"{', '.join(f'{{{slot}}}' for slot in JUDGE_SLOTS)}; use these")

    @classmethod
    def load(cls, name_or_path: str | pathlib.Path) -> "JudgeTemplate":
        """"default", or the path of a text file. Raises InputNotFound, or InputError for other slots."""
        name = str(name_or_path)
        return cls(name, JUDGE_TEMPLATES[name] if name in JUDGE_TEMPLATES else read_template(name, JUDGE_TEMPLATES, "judge"))

    def render(self, **slots) -> str:
        """The prompt as text; answers may be a sequence of texts. The content of a slot becomes one line."""
        return _DOCUMENT_SLOT.sub(lambda match: _one_line(slot_text(slots[match.group(1)])), self.text)


def slot_text(value: str | int | Sequence[str]) -> str:
    """The text of a slot; several gold answers are joined by "; "."""
    return "; ".join(value) if isinstance(value, (list, tuple)) else str(value)


def format_document(fmt: str, index: int, document) -> str:
    """A document as one line.

    Args:
      fmt: text with {i}, {title}, {text}, such as "Doc {i}: {title}. {text}". With a blank title, the text between it
        and the next slot is dropped.
      index: the document's number, from 1.
      document: with `title` and `text`; white space in them becomes one blank.

    Returns:
      The line, ending in its only newline.

    Raises:
      InputError: an unknown slot, or no {text}.
    """
    values = {"i": str(index), "title": _one_line(document.title), "text": _one_line(document.text)}
    slots = _DOCUMENT_SLOT.findall(fmt)
    unknown = [slot for slot in slots if slot not in values]
    if unknown or "text" not in slots:
        what = f"unknown slot {{{unknown[0]}}}" if unknown else "no slot {text}"
        raise InputError(f"document format {fmt!r}: {what}; slots are {{i}}, {{title}}, {{text}}")
    if not values["title"]:
        fmt = re.sub(r"\{title\}[^\w{]*", "", fmt)
    return _one_line(_DOCUMENT_SLOT.sub(lambda match: values[match.group(1)], fmt)) + "\n"


def bare_line(line: str) -> str:
    """A document's line without its number or bullet."""
    return _NUMBER.sub("", line.strip()).strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def read_template(name: str, templates, kind: str) -> str:
    """The text of a template file. Raises InputNotFound, which lists the names of templates."""
    path = pathlib.Path(name)
    if not path.is_file():
        raise InputNotFound(f"no {kind} template {name!r}; give {', '.join(map(repr, templates))} or the path of a "
                            "text file")
    with reading(name):
        return path.read_text(encoding="utf-8")
