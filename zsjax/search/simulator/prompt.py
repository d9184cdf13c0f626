"""The simulator's prompt, and documents as lines.

Prompts are data: `SimulatorTemplate.load` takes a name or a path, so a published simulator can use the prompt it was
tuned with.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence

from zsjax.errors import InputError, InputNotFound, json_value, reading, reason_of
from zsjax.search.simulator import prompt_texts as texts

SLOTS = ("mode", "Mode", "num_documents", "question", "answers", "answer", "query")
MODES = ("useful", "noisy")
_GIVEN_AS = {"Mode": "mode", "answer": "answers"}  # slots that show a value of another name in another form
# A slot with the characters that touch it: tokenizers may join these with its content, up to the next blank.
# A run of such characters is tried from its beginning alone: else 100,000 brackets take 200 s (8,000: 1.4 s).
_SLOT = re.compile(r"( ?)((?:(?<![^\s\w{}])[^\s\w{}]+)?)\{(\w+)\}([^\s\w{}]*[\r\n]*)")
_DOCUMENT_SLOT = re.compile(r"\{(\w+)\}")

_NUMBER = re.compile(r"^\W*(?:doc(?:ument)?\W{0,3})?\d{1,2}\W{0,3}[:.)\]](?!\d)\s*|^[-*•]\s+|^doc(?:ument)?\s*:\s*",
                     re.IGNORECASE)

JUDGE_SLOTS = ("question", "answers", "document")


@dataclasses.dataclass(frozen=True)
class Slot:
    """A slot of a template.

    Attributes:
      name: one of SLOTS.
      before, after: the characters of the template that are encoded with the content: a blank or punctuation in front,
        punctuation and newlines behind.
    """

    name: str
    before: str = " "
    after: str = ""

    @property
    def value(self) -> str:
        """The name of the value that fills it."""
        return _GIVEN_AS.get(self.name, self.name)

    def fill(self, value: str | int | Sequence[str]) -> str:
        """The slot's text. The content has no blank ends; without content the blank in front is left out.

        value: a text, or the gold answers.
        """
        if self.name == "answer" and isinstance(value, (list, tuple)):
            value = value[:1]
        content = slot_text(value).strip()
        content = content.capitalize() if self.name == "Mode" else content
        return f"{self.before if content else self.before.lstrip()}{content}{self.after}"

    def encode(self, tokenizer, value: str | int | Sequence[str]) -> list[int]:
        """Ids of `fill`'s text."""
        text = self.fill(value)
        return tokenizer.encode_text(text) if text else []


@dataclasses.dataclass(frozen=True)
class SimulatorTemplate:
    """The simulator's prompt: text with slots, spliced from the tokens of its parts.

    Slots: {mode} (useful or noisy) or {Mode} (Useful or Noisy), {num_documents}, {question}, {answers} (all golds, "; "
    between them) or {answer} (the first gold), and {query}. A mode and {query} are required. The prompt is never encoded
    as a whole. Its texts and slots are encoded one by one and spliced, in tuning on the host (`build`) and in use on the
    device (`pieces`). So a simulator reads the same tokens in both.

    The prompt is the template to the letter, with one exception. A slot that begins a line is filled with one blank in
    front, as words within a text and queries of policies (`<search> query </search>`) have one; {Mode} is filled without.

    Punctuation and newlines that touch a slot are encoded with its content. Those behind {query} are not, because its
    tokens are the policy's. So tokenizers like Qwen's or Llama 3's make the same tokens of the whole, if " \n" or a word
    follows {query}. If "\n" follows it, a query that ends in punctuation may differ by a token.

    Attributes:
      name: where it was loaded from, a name or a path.
      text: the template.
      system: the system message in a chat; None: no such message.
      around: the texts of a chat format before and behind the prompt; without them the tokenizer's `bos_ids` come first.
    """

    name: str
    text: str
    system: str | None = None
    around: tuple[str, str] = ("", "")

    def __post_init__(self):
        where, found = f"simulator template {self.name!r}", {}
        for part in _split(self.text):
            if isinstance(part, str):
                continue
            if part.name not in SLOTS:
                known = ", ".join(f"{{{slot}}}" for slot in SLOTS)
                raise InputError(f"{where}: unknown slot {{{part.name}}}; slots are {known}")
            if found.setdefault(part.value, part) != part and part.value in ("question", "answers", "query"):
                raise InputError(f"{where} shows {part.value} in two forms; use one slot, with equal characters around it")
        for slot in ("mode", "query"):
            if slot not in found:
                raise InputError(f"{where} has no slot {{{slot}}}; add it")
        if found["query"].before != " ":
            raise InputError(f"{where}: {{query}} follows {found['query'].before!r}; put a blank or a newline between")

    @classmethod
    def load(cls, name_or_path: str | pathlib.Path) -> "SimulatorTemplate":
        """A name in TEMPLATES, or a path: a .json file with `prompt` and `system`, or a text file with the prompt.

        Raises:
          InputNotFound: neither a name nor a file.
          InputError: not a template; the message names the file and the slot or field.
        """
        name = str(name_or_path)
        if name in TEMPLATES:
            return TEMPLATES[name]
        fields = template_fields(name, TEMPLATES, "simulator", ("prompt", "system"))
        return cls(name, fields["prompt"], fields.get("system"))

    def in_chat(self, tokenizer) -> "SimulatorTemplate":
        """The template as the user's message in the tokenizer's chat format, up to the assistant's first token.

        The format's special tokens are recognised. Raises ValueError if the tokenizer has no chat template.
        """
        mark, text = "\N{OBJECT REPLACEMENT CHARACTER}", self.text.strip()
        marked = self.text.replace(text, mark)  # the format decides about blank ends
        chat = tokenizer.render_chat([*self.system_messages, {"role": "user", "content": marked}])
        before, _, behind = chat.partition(mark)
        return dataclasses.replace(self, text=text, around=(before, behind))

    @property
    def system_messages(self) -> list[dict[str, str]]:
        """The messages of a chat that precede the user's."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    @functools.cached_property
    def parts(self) -> list[str | Slot]:
        """Texts and slots, in order."""
        before, behind = self.around
        parts = _split(self.text)
        if before and isinstance(parts[0], str):
            before += parts.pop(0)
        if behind and isinstance(parts[-1], str):
            behind = parts.pop() + behind
        return [part for part in (before, *parts, behind) if part]

    def slot(self, value: str) -> Slot:
        """The slot that a value fills; one between blanks where the template does not show it."""
        return next((part for part in self.parts if isinstance(part, Slot) and part.value == value), Slot(value))

    def pieces(self, tokenizer) -> list[list[int] | Slot]:
        """Ids of the texts, and the slots, in order."""
        pieces: list = [tokenizer.encode(part) if isinstance(part, str) else part for part in self.parts]
        bos = () if any(self.around) else tokenizer.bos_ids
        first = pieces[0] if isinstance(pieces[0], list) else []
        return pieces if tuple(first[:len(bos)]) == bos else [[*bos], *pieces]

    def render(self, **values) -> str:
        """The prompt as text, for a simulator on a server. Raises InputError as `build`."""
        self._check(values)
        return "".join(part if isinstance(part, str) else part.fill(values[part.value]) for part in self.parts)

    def _check(self, values):
        for part in self.parts:
            if isinstance(part, Slot) and part.value not in values:
                raise InputError(f"simulator template {self.name!r} has the slot {{{part.name}}}; give {part.value}=...")

    def build(self, tokenizer, **values) -> list[int]:
        """Ids of the whole prompt, equal to the splice on the device.

        values: mode, num_documents, question, answers and query, as far as the template has slots for them; answers may
        be a sequence of texts. Raises InputError if one is missing.
        """
        self._check(values)
        ids = []
        for piece in self.pieces(tokenizer):
            ids += piece if isinstance(piece, list) else piece.encode(tokenizer, values[piece.value])
        return ids


def _split(text: str) -> list[str | Slot]:
    """The texts and slots of a template, in order."""
    parts: list[str | Slot] = []
    at = 0
    for match in _SLOT.finditer(text):
        blank, touching, name, after = match.groups()
        before = (blank or ("" if touching or name == "Mode" else " ")) + touching
        end = match.end() if name != "query" else match.start(4)
        parts += [text[at:match.start()], Slot(name, before, after if name != "query" else "")]
        at = end
    parts.append(text[at:])
    return [part for part in parts if part]


TEMPLATES = {name: SimulatorTemplate(name, text, system) for name, text, system in (
    ("default", texts.DEFAULT, None),
    ("plain", texts.REQUEST, None), ("mode_last", texts.MODE_LAST, None),  # for a model that learns its task from examples
    ("prompted", texts.PROMPTED, None), ("zerosearch", texts.ZEROSEARCH, ""),
    ("tiny_world", texts.TINY_WORLD, None), ("tiny_world_prompted", texts.TINY_WORLD_PROMPTED, None))}
JUDGE_TEMPLATES = {"default": texts.JUDGE}


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


def template_fields(name: str, templates: Mapping, kind: str, fields: Sequence[str]) -> dict[str, str]:
    """The fields of a template file, "prompt" among them: of a .json file, or the text of another file as the prompt.

    Args:
      fields: what a .json file may have; "prompt" is required.

    Raises:
      InputNotFound: as `read_template`.
      InputError: not such an object; the message names the file and the field.
    """
    text, where = read_template(name, templates, kind), f"{kind} template {name!r}"
    if not name.endswith(".json"):
        return {"prompt": text}
    try:
        values = json_value(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({reason_of(error)}); correct the file") from error
    if not isinstance(values, dict) or "prompt" not in values:
        raise InputError(f"{where} has no field 'prompt'; write an object with it")
    for field, value in values.items():
        if field not in fields or not isinstance(value, str):
            raise InputError(f"{where}: field {field!r} is {value!r:.60}; write a text, in one of {', '.join(fields)}")
    return values


def read_template(name: str, templates, kind: str) -> str:
    """The text of a template file. Raises InputNotFound, which lists the names of templates."""
    path = pathlib.Path(name)
    if not path.is_file():
        raise InputNotFound(f"no {kind} template {name!r}; give {', '.join(map(repr, templates))} or the path of a "
                            "text file")
    with reading(name):
        return path.read_text(encoding="utf-8")
