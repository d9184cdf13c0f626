"""Tokenizers: text to ids and back, and the exact bytes of every token.

A folder of a Hugging Face fast tokenizer is read by the `tokenizers` library directly, which takes well under a
second; transformers is loaded only for folders without tokenizer.json and for chat templates.
"""

import functools
import json
import pathlib
import re
from collections.abc import Sequence

from zsjax.data.assets import asset_path

_EOS_NAMES = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
# Where the chat template writes it, it ends a generation, whatever eos_token is: Gemma's names only <eos>.
_TURN_ENDS = ("<end_of_turn>",)
_PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<|endoftext|>")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """What every tokenizer has. Objects are compared and hashed by identity.

    Attributes:
      path: where it was loaded from.
      vocab_size: ids are 0 .. vocab_size-1, added tokens included (a model's embedding may have more rows).
      eos_ids: ids that end a generation: of the tokenizer's and the model's configs beside it; () if there are none.
      begin_ids: what the tokenizer puts in front of a text that begins a context, such as <bos>; () for most. Models that
        were trained with it (Gemma, Llama) are of no use without.
      pad_id: the padding token; without one an end token, without that 0. Nothing infers a mask from it.
    """

    path: pathlib.Path
    vocab_size: int
    eos_ids: tuple[int, ...]
    pad_id: int
    begin_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        """Ids of the text. No special tokens are added; those written out in the text are recognised."""
        raise NotImplementedError

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that begins a context: `encode` behind `begin_ids`, which a text that has them gets once."""
        ids, begin = self.encode(text), list(self.begin_ids)
        return ids if ids[:len(begin)] == begin else begin + ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens written out; bytes that are no UTF-8 become U+FFFD."""
        raise NotImplementedError

    def _token_table(self) -> list[bytes | None]:
        raise NotImplementedError

    @functools.cached_property
    def token_table(self) -> tuple[bytes | None, ...]:
        """`token_bytes` of every id, vocab_size entries."""
        return tuple(self._token_table())

    def token_bytes(self, id: int) -> bytes | None:
        """The bytes that a token writes; None for special tokens and for ids that do not exist.

        The bytes of a text's tokens, joined, are the (normalised) text's UTF-8 bytes.
        """
        return self.token_table[id] if 0 <= id < self.vocab_size else None

    def apply_chat_template(self, messages: Sequence[dict], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation in the model's chat format, up to where the assistant begins to speak.

        Args:
          messages: [{"role": "user", "content": "..."}, ...].
          add_generation_prompt: end with the assistant's header.

        Raises:
          ValueError: the tokenizer has no chat template.
        """
        raise ValueError(f"the tokenizer at {self.path} has no chat template: set prompts.chat = False")


class FastTokenizer(Tokenizer):
    """A Hugging Face fast tokenizer: byte-level BPE (Qwen, Llama 3) or SentencePiece-like (Llama 2)."""

    def __init__(self, backend, path: pathlib.Path):
        """`backend` is a tokenizers.Tokenizer, `path` its folder or file."""
        self.path = path
        self._backend = backend
        self._folder = path if path.is_dir() else path.parent
        self._vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocab.values()) + 1
        self._config = _read_json(self._folder / "tokenizer_config.json")
        special = {token.content: id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self.eos_ids = self._find_eos(special)
        bare, whole = self.encode("a"), backend.encode("a", add_special_tokens=True).ids
        if whole[-len(bare):] == bare:  # else special tokens close a text, too, which no decoder's do
            self.begin_ids = tuple(whole[:-len(bare)])
        pad = _content(self._config.get("pad_token"))
        known = [self._vocab[name] for name in (pad, *_PAD_NAMES) if name in self._vocab]
        self.pad_id = (known or list(self.eos_ids) or [0])[0]

    def _find_eos(self, special: dict[str, int]) -> tuple[int, ...]:
        found = []
        name = _content(self._config.get("eos_token"))
        if name in self._vocab:
            found.append(self._vocab[name])
        for file in ("generation_config.json", "config.json"):
            ids = _read_json(self._folder / file).get("eos_token_id")
            found += [ids] if isinstance(ids, int) else list(ids or ())
        if not found:
            found = [special[name] for name in _EOS_NAMES if name in special][:1]
        template = self._chat_template() or ""
        found += [special[name] for name in _TURN_ENDS if name in special and name in template]
        return tuple(dict.fromkeys(found))

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode([int(id) for id in ids], skip_special_tokens=False)

    def _token_table(self) -> list[bytes | None]:
        table: list[bytes | None] = [None] * self.vocab_size
        kind = _vocabulary_kind(json.loads(self._backend.to_str()), self.path)
        spell = _spell_byte_level if kind == "byte_level" else _spell_piece
        for text, id in self._vocab.items():
            table[id] = spell(text)
        for id, token in self._backend.get_added_tokens_decoder().items():
            table[id] = None if token.special else token.content.encode()
        return table

    def _chat_template(self) -> str | None:
        template = self._config.get("chat_template")
        file = self._folder / "chat_template.jinja"
        if file.is_file():
            template = file.read_text(encoding="utf-8")
        if isinstance(template, list):  # named templates
            template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
        return template

    def apply_chat_template(self, messages: Sequence[dict], *, add_generation_prompt: bool = True) -> list[int]:
        template = self._chat_template()
        if not template:
            raise ValueError(
                f"the tokenizer at {self.path} has no chat template (no chat_template in tokenizer_config.json and no "
                "chat_template.jinja): set prompts.chat = False or add one"
            )
        import transformers

        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        special = {name: _content(self._config[name]) for name in names if self._config.get(name)}
        renderer = transformers.PreTrainedTokenizerFast(tokenizer_object=self._backend, **special)
        text = renderer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return self.encode(text)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece .model. Its own normalisation holds: many models turn newlines into blanks and put a blank
    before the text."""

    def __init__(self, path: pathlib.Path):
        import sentencepiece

        self.path = path
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.vocab_size = self._model.vocab_size()
        self.eos_ids = (self._model.eos_id(),) if self._model.eos_id() >= 0 else ()
        self.pad_id = self._model.pad_id() if self._model.pad_id() >= 0 else (*self.eos_ids, 0)[0]

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, add_bos=False, add_eos=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(id) for id in ids])

    def _token_table(self) -> list[bytes | None]:
        model = self._model
        return [
            None if model.is_control(id) or model.is_unknown(id) else _spell_piece(model.id_to_piece(id))
            for id in range(self.vocab_size)
        ]


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      path: a folder with tokenizer.json, or with vocab.json and merges.txt (read by transformers), or with a
        SentencePiece .model; or a tokenizer.json or .model file itself; or "asset:NAME".

    Raises:
      FileNotFoundError: nothing there that is a tokenizer; one line that says what was looked for.
      ValueError: the file is there and cannot be read.
    """
    found = asset_path(path)
    if not found.exists():
        raise FileNotFoundError(
            f"no tokenizer at {str(path)!r}: it must be a folder with tokenizer.json, or with vocab.json and "
            "merges.txt, or a SentencePiece .model file"
        )
    file, slow = found, False
    if found.is_dir():
        named = [found / name for name in ("tokenizer.json", "tokenizer.model", "spiece.model")]
        named += sorted(found.glob("*.model"))
        slow = (found / "vocab.json").is_file() and (found / "merges.txt").is_file()
        file = next((candidate for candidate in named if candidate.is_file()), None)
        if file is None and not slow:
            held = ", ".join(sorted(entry.name for entry in found.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(
                f"no tokenizer in {str(path)!r}: it holds {held}; put tokenizer.json, or vocab.json and merges.txt, or "
                "a SentencePiece .model there"
            )
    try:
        if file is not None and file.suffix == ".model":
            return SentencePieceTokenizer(file)
        if file is not None:
            import tokenizers

            return FastTokenizer(tokenizers.Tokenizer.from_file(str(file)), found)
        import transformers

        # Which pre-tokenizer belongs to a bare vocabulary is known to transformers only.
        loaded = transformers.AutoTokenizer.from_pretrained(str(found), local_files_only=True)
        return FastTokenizer(loaded.backend_tokenizer, found)
    except Exception as error:  # tokenizers and sentencepiece raise bare Exceptions and RuntimeErrors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"cannot read the tokenizer at {str(path)!r}: {reason}; check that {(file or found).name} is complete and "
            "a Hugging Face fast tokenizer or a SentencePiece model"
        ) from error


def _read_json(file: pathlib.Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _content(token) -> str | None:
    """Special tokens stand in configs as text or as {"content": text, ...}."""
    return token.get("content") if isinstance(token, dict) else token


def _vocabulary_kind(spec: dict, path: pathlib.Path) -> str:
    """How the vocabulary's strings stand for bytes: "byte_level" or "pieces"."""
    parts = []
    for room in (spec.get("decoder"), spec.get("pre_tokenizer")):
        stack = [room]
        while stack:
            part = stack.pop()
            if part:
                parts.append(part)
                stack += part.get("decoders", []) + part.get("pretokenizers", [])
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return "byte_level"
    replaces = any(part["type"] == "Replace" and part.get("pattern") == {"String": "\u2581"} for part in parts)
    if "Metaspace" in kinds or replaces:
        return "pieces"
    raise ValueError(
        f"the tokenizer at {path} is neither byte-level nor SentencePiece-like (it is put together of "
        f"{', '.join(sorted(kinds)) or 'nothing'}), so the bytes of its tokens are unknown"
    )


@functools.cache
def _byte_level_map() -> dict[int, int]:
    """GPT-2's map inverted: code point of the printable character that stands for a byte -> the byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {**{byte: byte for byte in printable}, **{256 + n: byte for n, byte in enumerate(others)}}


def _spell_byte_level(text: str) -> bytes:
    inverse = _byte_level_map()
    if all(ord(letter) in inverse for letter in text):
        return text.translate(inverse).encode("latin-1")
    return text.encode()


def _spell_piece(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte.group(1), 16)]) if byte else piece.replace("\u2581", " ").encode()
