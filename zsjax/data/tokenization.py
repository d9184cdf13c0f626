"""Tokenizers: text to ids and back, and the exact bytes of every token.

Text is of two kinds. In a template, which is ours, special tokens that are written out are recognised (`encode`,
`encode_prompt`). In data, that is questions, queries, golds and documents, they are ordinary text (`plain`, `encode_text`).

The `tokenizers` library reads a fast tokenizer's folder, which takes under a second; transformers is loaded only for folders
without tokenizer.json.
"""

import functools
import json
import pathlib
import re
from collections.abc import Sequence

from zsjax.data.assets import asset_path
from zsjax.data.tokenizer_config import TokenizerConfig, TokenizerConfigError, what_is_there
from zsjax.errors import InputError, InputNotFound, pointer, reason_of
from zsjax.types import whole_text

_PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<|endoftext|>")
MAX_VOCABULARY = 1 << 24  # the largest published ones have 262,144 ids
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """The interface of tokenizers. Objects are compared and hashed by identity.

    Attributes:
      path: of its folder or file.
      vocab_size: ids are 0 .. vocab_size-1, added tokens included (a model's embedding may have more rows).
      vocab: text of every token -> id.
      eos_ids: ids that end a generation, of the tokenizer's and the model's configs and the end of a chat template's turn.
      bos_ids: ids that the post-processor puts before a text; () for most.
      pad_id: the padding token, else an end token, else 0. Nothing infers a mask from it.
    """

    path: pathlib.Path
    vocab_size: int
    vocab: dict[str, int]
    eos_ids: tuple[int, ...]
    pad_id: int
    bos_ids: tuple[int, ...] = ()
    _special_ids: set[int | None]  # ids that ordinary text never has
    _surplus_ids: set[int] = frozenset()  # special tokens that were added after the vocabulary
    _chat_template = None

    def encode(self, text: str) -> list[int]:
        """Ids of a template's text. Special tokens that are written out are recognised; none are added."""
        raise NotImplementedError

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a whole plain prompt: `encode`, after `bos_ids` unless the text begins with them."""
        ids = self.encode(text)
        return ids if tuple(ids[:len(self.bos_ids)]) == self.bos_ids else [*self.bos_ids, *ids]

    def encode_text(self, text: str) -> list[int]:
        """Ids of data: ordinary tokens only, without characters that the vocabulary cannot spell."""
        return self._encode_plain(text)[1]

    def plain(self, text: str) -> str:
        """The text with a blank inside every special token that is written out in it, for a slot of a template.

        >>> load_tokenizer("asset:real/tokenizer").plain("a<|im_end|>b")
        'a< |im_end|>b'
        """
        return self._encode_plain(text)[0]

    def _encode_plain(self, text: str) -> tuple[str, list[int]]:
        """(`plain`, `encode_text`) of a text, encoded once where it holds no special token."""
        text = whole_text(text)
        for attempt in range(8):  # a blank may complete another special token; in the end they are removed
            ids, spans = self._encode_spans(text)
            if not spans:
                break
            for start, stop in reversed(spans):
                name = text[start:stop]
                first = start + (len(name) - len(name.lstrip()) if name.strip() else 0)
                broken = f"{text[first]} {text[first + 1:stop]}" if stop - first > 1 and attempt < 4 else " "
                text = text[:first] + broken + text[stop:]
        return text, [id for id in ids if id not in self._special_ids]

    def _encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(`encode`, [start, stop) in characters of the special tokens that are written out in the text)."""
        raise NotImplementedError

    @functools.cached_property
    def ids_in_use(self) -> int:
        """Ids below this need an embedding. Unused special tokens at the end do not: Gemma 3's text models have no row for
        "<image_soft_token>"."""
        ours, last = {*self.eos_ids, *self.bos_ids, self.pad_id}, self.vocab_size
        while last - 1 in self._surplus_ids and last - 1 not in ours:
            last -= 1
        return last

    @functools.cached_property
    def newline_id(self) -> int | None:
        """The token that writes a newline; None in a vocabulary without one."""
        ends = [id for id in self.encode("\n")[-1:] if (self.token_bytes(id) or b"").endswith(b"\n")]
        return ends[0] if ends else next((id for id, entry in enumerate(self.token_table) if entry == b"\n"), None)

    def conflict(self, folder) -> str | None:
        """How the tokenizer in a model's folder contradicts this one; None if it does not, or there is none.

        A contradiction is a text with two ids, or an id with two texts; one may lack tokens of the other.
        """
        folder = pathlib.Path(folder)
        files = [folder / "tokenizer.json", self.path / "tokenizer.json" if self.path.is_dir() else self.path]
        if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
            return None
        try:
            own = load_tokenizer(folder)
        except FileNotFoundError:
            return None
        texts = {id: text for text, id in self.vocab.items()}
        for text, id in own.vocab.items():
            if self.vocab.get(text, id) != id:
                return f"{text!r} has the id {self.vocab[text]}, but {id} in the model's own tokenizer"
            if texts.get(id, text) != text:
                return f"id {id} is {texts[id]!r}, but {text!r} in the model's own tokenizer"
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens written out; bytes that are not UTF-8 become U+FFFD."""
        raise NotImplementedError

    def _token_table(self) -> list[bytes | None]:
        raise NotImplementedError

    @functools.cached_property
    def token_table(self) -> tuple[bytes | None, ...]:
        """`token_bytes` of every id, vocab_size entries."""
        return tuple(self._token_table())

    def token_bytes(self, id: int) -> bytes | None:
        """The bytes of a token; None for special tokens and ids that do not exist.

        The joined bytes of a text's tokens are the UTF-8 bytes of the (normalised) text.
        """
        return self.token_table[id] if 0 <= id < self.vocab_size else None

    def apply_chat_template(self, messages: Sequence[dict], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation in the model's chat format, up to the assistant's next message.

        Args:
          messages: [{"role": "user", "content": "..."}, ...]. Contents are data.
          add_generation_prompt: end with the assistant's header.

        Raises:
          ValueError: the tokenizer has no chat template.
        """
        return self.encode(self.render_chat(messages, add_generation_prompt=add_generation_prompt))

    def render_chat(self, messages: Sequence[dict], *, add_generation_prompt: bool = True) -> str:
        """The text whose ids are `apply_chat_template`. Raises ValueError as that does."""
        if self._chat_template is None:
            raise InputError(f"the tokenizer at {self.path} has no chat template (no chat_template in "
                             "tokenizer_config.json and no chat_template.jinja): set prompts.chat = False or add one")
        messages = [{**message, "content": self.plain(message["content"])} if isinstance(message.get("content"), str)
                    else message for message in messages]
        return self._chat_template.render(messages, add_generation_prompt=add_generation_prompt)


class FastTokenizer(Tokenizer):
    """A Hugging Face fast tokenizer: byte-level BPE (Qwen, Llama 3) or SentencePiece-like (Llama 2)."""

    def __init__(self, backend, path: pathlib.Path):
        """backend: a tokenizers.Tokenizer. path: its folder or file. Raises ValueError as `load_tokenizer`."""
        self.path = path
        self._backend = backend
        backend.no_truncation()  # a tokenizer.json keeps its last user's settings, which would cut or pad texts
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # it would draw ids at random
        self.vocab = backend.get_vocab(with_added_tokens=True)
        if not self.vocab:
            raise InputError(f"{path}: the vocabulary is empty; copy the model's tokenizer.json again")
        self.vocab_size = max(self.vocab.values()) + 1
        if self.vocab_size > MAX_VOCABULARY:  # tables of it have an entry for each id
            raise InputError(f"{path}: the highest id is {self.vocab_size - 1}; a vocabulary has at most {MAX_VOCABULARY}")
        configs = TokenizerConfig(path if path.is_dir() else path.parent)
        added = backend.get_added_tokens_decoder()
        self._unknown_id = self.vocab.get(getattr(backend.model, "unk_token", None))
        self._special_ids = {id for id, token in added.items() if token.special} | {self._unknown_id}
        self._surplus_ids = {id for id, token in added.items() if token.special}
        self._chat_template = configs.chat_template()
        self.bos_ids = _added_in_front(backend)
        self.eos_ids = configs.eos_ids(self.vocab, {added[id].content for id in self._special_ids if id in added})
        if self._chat_template:
            turn_end = self.encode(self._chat_template.turn_end())
            self.eos_ids = tuple(dict.fromkeys([*self.eos_ids, *[id for id in turn_end if id in added][:1]]))
        known = [self.vocab[name] for name in (configs.token("pad_token"), *_PAD_NAMES) if name in self.vocab]
        self.pad_id = (known or list(self.eos_ids) or [0])[0]

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(whole_text(text), add_special_tokens=False).ids

    def _encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._backend.encode(text, add_special_tokens=False)
        if self._special_ids.isdisjoint(encoding.ids):
            return encoding.ids, []
        unknown = None if self._unknown_id is None else self._backend.id_to_token(self._unknown_id)
        # An unknown character has the id of a special token, but is not one that was written out.
        written = [span for id, span in zip(encoding.ids, encoding.offsets, strict=True)
                   if id in self._special_ids and span[0] < span[1]
                   and (id != self._unknown_id or text[slice(*span)].strip() == unknown)]
        return encoding.ids, written

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode([int(id) for id in ids], skip_special_tokens=False)

    def _token_table(self) -> list[bytes | None]:
        table: list[bytes | None] = [None] * self.vocab_size
        kind = _vocabulary_kind(json.loads(self._backend.to_str()), self.path)
        spell = _spell_byte_level if kind == "byte_level" else _spell_piece
        for text, id in self.vocab.items():
            table[id] = spell(text)
        for id, token in self._backend.get_added_tokens_decoder().items():
            table[id] = None if token.special else token.content.encode()
        return table


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece .model with its own normalisation: many turn newlines into blanks and put a blank before the text."""

    def __init__(self, path: pathlib.Path):
        import sentencepiece

        self.path = path
        self._model = model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.vocab_size = model.vocab_size()
        self.vocab = {model.id_to_piece(id): id for id in range(self.vocab_size)}
        self._special_ids = {id for id in range(self.vocab_size) if model.is_control(id) or model.is_unknown(id)}
        configs = TokenizerConfig(path.parent)
        self._chat_template = configs.chat_template()
        named = [model.id_to_piece(id) for id in (model.eos_id(),) if id >= 0]
        self.eos_ids = configs.eos_ids(self.vocab, set(), default=named)
        self.pad_id = model.pad_id() if model.pad_id() >= 0 else (*self.eos_ids, 0)[0]
        pad = self.vocab.get(configs.token("pad_token"))
        self.pad_id = self.pad_id if pad is None else pad
        self.bos_ids = (model.bos_id(),) if configs.adds_bos() and model.bos_id() >= 0 else ()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(whole_text(text), add_bos=False, add_eos=False)

    def _encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), []  # SentencePiece never takes text for a control symbol

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(id) for id in ids])

    def _token_table(self) -> list[bytes | None]:
        model = self._model
        return [None if model.is_control(id) or model.is_unknown(id) else _spell_piece(model.id_to_piece(id))
                for id in range(self.vocab_size)]


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      path: a folder with tokenizer.json, with vocab.json and merges.txt (read by transformers) or with a SentencePiece
        .model; a tokenizer.json or .model file itself; or "asset:NAME".

    Raises:
      FileNotFoundError: no tokenizer is there.
      ValueError: the file cannot be read.
    """
    found = asset_path(path)
    if not found.exists():
        raise InputNotFound(f"no tokenizer at {str(path)!r}: it must be a folder with tokenizer.json, or with vocab.json "
                            "and merges.txt, or a SentencePiece .model file")
    file, slow = found, False
    if found.is_dir():
        named = [found / name for name in ("tokenizer.json", "tokenizer.model", "spiece.model")]
        named += sorted(found.glob("*.model"))
        slow = (found / "vocab.json").is_file() and (found / "merges.txt").is_file()
        file = next((candidate for candidate in named if candidate.is_file()), None)
        if file is None and not slow:
            raise InputNotFound(f"no tokenizer in {str(path)!r}: {what_is_there(found)}")
    try:
        if file is not None and file.suffix == ".model":
            return SentencePieceTokenizer(file)
        if file is not None:
            import tokenizers

            backend = tokenizers.Tokenizer.from_file(str(file))
        else:
            import transformers

            # Only transformers knows the pre-tokenizer of a bare vocabulary.
            backend = transformers.AutoTokenizer.from_pretrained(str(found), local_files_only=True).backend_tokenizer
        return FastTokenizer(backend, found)
    except TokenizerConfigError:
        raise
    except Exception as error:  # tokenizers and sentencepiece raise bare Exceptions and RuntimeErrors
        reason = f"not JSON, {pointer(file)}" if file is not None and pointer(file) else reason_of(error)
        raise InputError(f"cannot read the tokenizer at {str(path)!r}: {reason}; check that {(file or found).name} is "
                         "complete and a Hugging Face fast tokenizer or a SentencePiece model") from error


def _added_in_front(backend) -> tuple[int, ...]:
    """The ids that the post-processor puts before a text."""
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    starts = [at for at in range(len(full)) if full[at:at + len(bare)] == bare]
    return tuple(full[:starts[0]]) if bare and starts else ()


def _vocabulary_kind(spec: dict, path: pathlib.Path) -> str:
    """How the vocabulary's strings spell bytes: "byte_level" or "pieces"."""
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
    raise InputError(f"the tokenizer at {path} (of {', '.join(sorted(kinds)) or 'no parts'}) is neither byte-level nor "
                     "SentencePiece-like, so the bytes of its tokens are unknown; use another tokenizer")


@functools.cache
def _byte_level_map() -> dict[int, int]:
    """GPT-2's map inverted: code point of a byte's printable character -> the byte."""
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
