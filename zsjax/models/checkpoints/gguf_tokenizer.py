"""The tokenizer in a GGUF file's metadata, rebuilt as a Hugging Face folder's tokenizer.json.

Two kinds: "gpt2" is byte-level BPE with its merges on file; "llama" is SentencePiece's BPE, whose merges follow from the
vocabulary: each piece that two pieces spell is a merge, the best score first. Agrees with transformers 5's own reading of
GGUF tokenizers (integrations/gguf/gguf_tokenizer_mapping.py), which the tests hold it against.
"""

import dataclasses
import json
from pathlib import Path

from zsjax.errors import InputError

__all__ = ["WrittenTokenizer", "merges_of", "write"]

CONTROL, USER_DEFINED = 3, 4  # token types
BLANK = "\u2581"
# tokenizer.ggml.pre -> how text is cut before the merges: Llama 3's and Qwen2's published tokenizer.json
_SPLITS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
             r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_SPLITS |= dict.fromkeys(("llama3", "llama-v3", "smaug-bpe"), _SPLITS["llama-bpe"])
_SPLITS["deepseek-r1-qwen"] = _SPLITS["qwen2"]


@dataclasses.dataclass(frozen=True)
class WrittenTokenizer:
    """A folder with tokenizer.json and tokenizer_config.json, and what `save_hf` asks of a tokenizer."""

    path: Path
    eos_ids: tuple[int, ...]
    pad_id: int | None
    bos_ids: tuple[int, ...]


def write(metadata: dict, folder, eos_names, source, *, vocab_size: int) -> WrittenTokenizer:
    """Writes tokenizer.json and tokenizer_config.json.

    Args:
      metadata: of the GGUF file.
      folder: an existing folder.
      eos_names: control tokens that end a generation, beside the file's.
      source: the file, for errors.
      vocab_size: rows of the embedding, which the tokens must not exceed.

    Raises:
      ValueError: no tokenizer, one of an unsupported kind, or too many tokens.
    """
    ggml = {name.removeprefix("tokenizer.ggml."): value for name, value in metadata.items()
            if name.startswith("tokenizer.ggml.")}
    kind, tokens = ggml.get("model"), ggml.get("tokens")
    builders = {"gpt2": _byte_level, "llama": _pieces}
    if kind not in builders or not tokens:
        raise InputError(f"{source}: tokenizer.ggml.model={kind!r} with {len(tokens or ())} tokens is not supported; "
                         f"supported are {', '.join(builders)}")
    if len(tokens) > vocab_size:
        raise InputError(f"{source}: tokenizer.ggml.tokens has {len(tokens)} entries, the embedding {vocab_size} rows")
    try:
        backend = builders[kind](ggml, metadata.get("general.architecture", ""))
    except (KeyError, ValueError) as error:
        raise InputError(f"{source}: tokenizer.ggml.{error.args[0]}: missing or not supported") from None
    _add_tokens(backend, ggml)
    named = {name: ggml.get(f"{key}_token_id") for name, key in
             (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"))}
    begins = bool(ggml.get("add_bos_token", kind == "llama")) and named["bos_token"] is not None
    if begins:
        _begin_with(backend, tokens[named["bos_token"]], named["bos_token"])
    folder = Path(folder)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                **{name: tokens[id] for name, id in named.items() if id is not None}}
    if metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    typed = zip(tokens, ggml.get("token_type", ()), strict=False)
    control = {token: id for id, (token, type) in enumerate(typed) if type == CONTROL}
    eos = [named["eos_token"], ggml.get("eot_token_id"), *(control.get(name) for name in eos_names)]
    return WrittenTokenizer(folder, tuple(dict.fromkeys(id for id in eos if id is not None)), named["pad_token"],
                            (named["bos_token"],) if begins else ())


def merges_of(vocab: dict[str, int], rank: dict[str, float]) -> list[tuple[str, str]]:
    """Pairs of pieces that spell a piece, by the piece's rank (low first), then by the longer left part."""
    found = []
    for piece, order in rank.items():
        cuts = ((piece[:i], piece[i:]) for i in range(len(piece) - 1, 0, -1))
        found += [(order, -len(left), left, right) for left, right in cuts if left in vocab and right in vocab]
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in found]


def _pieces(ggml: dict, architecture: str):
    """SentencePiece's BPE: Gemma's, or Llama 2's with a blank before the text."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, gemma = list(ggml["tokens"]), architecture.startswith("gemma")
    if gemma:
        # llama.cpp's converter writes runs of blanks as blanks. Gemma's scores do not follow the order of its merges,
        # the places in the vocabulary do.
        tokens = [BLANK * len(token) if " " in token and not token.strip() else token for token in tokens]
    vocab = {token: id for id, token in enumerate(tokens)}
    if "merges" in ggml:
        merges = [tuple(merge.split(" ")) for merge in ggml["merges"]]
    else:
        ranks = range(len(tokens)) if gemma else [-score for score in ggml["scores"]]
        merges = merges_of(vocab, dict(zip(tokens, ranks, strict=True)))
    unknown = ggml.get("unknown_token_id")
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True,
                                   unk_token=None if unknown is None else tokens[unknown]))
    parts = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.normalizer = normalizers.Replace(" ", BLANK)
    if ggml.get("add_space_prefix", not gemma):
        # As Llama 2's published tokenizer.json and SentencePiece do it, also before a text that begins with a blank.
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), backend.normalizer])
        parts.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(parts)
    return backend


def _byte_level(ggml: dict, architecture: str):
    """GPT-2's kind: Llama 3 and Qwen."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = ggml.get("pre", "default")
    if pre not in _SPLITS:
        raise ValueError(f"pre={pre!r}")
    vocab = {token: id for id, token in enumerate(ggml["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in ggml["merges"]]
    llama = architecture == "llama"
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=llama))
    backend.normalizer = None if llama else normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_SPLITS[pre]), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_tokens(backend, ggml: dict):
    """Control tokens are special; user-defined ones are matched whole, too, and are text."""
    from tokenizers import AddedToken

    vocab = backend.get_vocab()
    kinds = list(zip(ggml["tokens"], ggml.get("token_type", ()), strict=False))

    def added(kind, special):
        return [AddedToken(token, normalized=False, special=special)
                for token, type in kinds if type == kind and token in vocab]

    backend.add_special_tokens(added(CONTROL, True))
    backend.add_tokens(added(USER_DEFINED, False))


def _begin_with(backend, token: str, id: int):
    from tokenizers import processors

    backend.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, id)])
