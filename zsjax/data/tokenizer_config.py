"""The files beside a tokenizer: tokenizer_config.json, special_tokens_map.json, the model's configs."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from zsjax.data.chat_template import ChatTemplate
from zsjax.errors import InputError

_EOS_NAMES = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
# Classes whose slow tokenizers begin every text with the beginning-of-text token by default.
_ADD_BOS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")


class TokenizerConfigError(InputError):
    """One line that names file and field."""


class TokenizerConfig:
    """The configs in a tokenizer's folder; a missing file counts as empty.

    Raises:
      TokenizerConfigError: a file that is not a JSON object.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._config = _read_json(folder / "tokenizer_config.json")
        self._map = _read_json(folder / "special_tokens_map.json")

    def token(self, name: str) -> str | None:
        """The text of "eos_token", "pad_token", ...; None where no file names it."""
        return self._named(name)[1]

    def _named(self, name):
        for file, config in (("tokenizer_config.json", self._config), ("special_tokens_map.json", self._map)):
            value = config.get(name)
            value = value.get("content") if isinstance(value, dict) else value  # text, or {"content": text, ...}
            if value is None:
                continue
            if not isinstance(value, str):
                raise TokenizerConfigError(f"{self._folder / file}: {name}={value!r} is not the text of a token; write it "
                                           "as a string")
            return self._folder / file, value
        return None, None

    def eos_ids(self, vocab: Mapping[str, int], special: set[str], default: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids that end a generation: eos_token and the ids of the model's configs, else the first name of `default` or
        well-known name in `special`.

        Raises:
          TokenizerConfigError: a name or an id that the vocabulary lacks.
        """
        file, name = self._named("eos_token")
        if name is not None and name not in vocab:
            known = [known for known in _EOS_NAMES if known in vocab]
            raise TokenizerConfigError(f"{file}: eos_token={name!r} is not in the vocabulary, so nothing would end a "
                                       f"generation; name one of its tokens{', such as ' + known[0] if known else ''}")
        found, size = [] if name is None else [vocab[name]], max(vocab.values()) + 1
        for file in ("generation_config.json", "config.json"):
            ids = _read_json(self._folder / file).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
            for id in ids:
                if type(id) is not int or not 0 <= id < size:
                    raise TokenizerConfigError(f"{self._folder / file}: eos_token_id={id!r} is not an id of the tokenizer, "
                                               f"which has 0 .. {size - 1}; copy tokenizer and model from one source")
            found += ids
        if not found:
            found = [vocab[name] for name in (*default, *(n for n in _EOS_NAMES if n in special)) if name in vocab][:1]
        return tuple(dict.fromkeys(found))

    def adds_bos(self) -> bool:
        """Whether a SentencePiece tokenizer begins texts with its beginning-of-text token."""
        name = str(self._config.get("tokenizer_class", "")).removesuffix("Fast")
        given = self._config.get("add_bos_token")
        return name in _ADD_BOS if given is None else bool(given)

    def chat_template(self) -> ChatTemplate | None:
        """The default chat template: chat_template.jinja, chat_template.json or tokenizer_config.json, in this order.

        Raises:
          TokenizerConfigError: not a template.
        """
        file = self._folder / "chat_template.jinja"
        if file.is_file():
            template = _read_text(file)
        else:
            file = self._folder / "chat_template.json"
            file = file if file.is_file() else self._folder / "tokenizer_config.json"
            template = _read_json(file).get("chat_template")
        if isinstance(template, list):  # named templates
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if not template:
            return None
        if not isinstance(template, str):
            raise TokenizerConfigError(f"{file}: chat_template is a {type(template).__name__}, not a text; copy the model's "
                                       "file again")
        names = {name: text for name in ("bos_token", "eos_token", "pad_token", "unk_token") if (text := self.token(name))}
        try:
            return ChatTemplate(template, names, file)
        except ValueError as error:
            raise TokenizerConfigError(str(error)) from error


def what_is_there(folder: pathlib.Path) -> str:
    """For an error: what a folder without a tokenizer holds, and what to use instead."""
    inside = [file.parent for form in ("*/tokenizer.*", "*/*/tokenizer.*") for file in sorted(folder.glob(form))
              if file.name in ("tokenizer.json", "tokenizer.model")]
    if inside:
        return f"there is one in a folder inside; give {' or '.join(map(str, inside[:4]))}"
    held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    return f"it holds {held}; put tokenizer.json, or vocab.json and merges.txt, or a SentencePiece .model there"


def _read_text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerConfigError(f"{file}: not UTF-8 text: {error}; copy the file again") from error


def _read_json(file: pathlib.Path) -> dict:
    if not file.is_file():
        return {}
    try:
        value = json.loads(_read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TokenizerConfigError(f"{file}: not JSON: {error}; copy the file again") from error
    if not isinstance(value, dict):
        raise TokenizerConfigError(f"{file}: a {type(value).__name__}, not an object; copy the model's file again")
    return value
