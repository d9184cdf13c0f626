"""Checkpoints and tokenizers of the Hugging Face hub, by their name: "owner/name", or "owner/name@revision"."""

import re
from pathlib import Path

from zsjax.errors import InputNotFound, reason_of

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?")
TOKENIZER_FILES = ("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
                   "*.model", "chat_template*", "config.json", "generation_config.json")
PREFIX = "hf:"


def hub_name(path) -> str | None:
    """The hub's name of "hf:owner/name", or of "owner/name" that is not a file or folder; else None. "@revision" stays.

    >>> hub_name("hf:Qwen/Qwen2.5-0.5B")
    'Qwen/Qwen2.5-0.5B'
    """
    text = str(path)
    name = text.removeprefix(PREFIX)
    if not _NAME.fullmatch(name) or (name == text and Path(text).exists()):
        return None
    return name


def local_folder(path, *, weights: bool = True) -> Path:
    """`path` itself, or the folder of a hub's model, downloaded once into the hub's cache.

    Args:
      path: a local path, "hf:owner/name", or "owner/name" that is not a folder. "@revision" behind the name, a commit,
        tag or branch, takes the model as it was there; without it, the newest files are taken.
      weights: False downloads no weights, for a tokenizer. Pickled weights are never downloaded.

    Raises:
      FileNotFoundError: not a folder, and the hub cannot be reached, does not have the model, or refuses it.
    """
    name = hub_name(path)
    if name is None:
        if str(path).startswith(PREFIX):
            raise InputNotFound(f"{path!r} is not a name on the Hugging Face hub; use {PREFIX}owner/name")
        return Path(path)
    try:
        import huggingface_hub
    except ImportError:
        raise InputNotFound(f"there is no folder {name!r}, and reading it from the Hugging Face hub needs the "
                                "package huggingface_hub") from None
    patterns = [*TOKENIZER_FILES, *(("*.safetensors", "*.safetensors.index.json") if weights else ())]
    try:
        model, _, revision = name.partition("@")
        return Path(huggingface_hub.snapshot_download(model, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the hub's and httpx's own kinds
        raise InputNotFound(f"there is no folder {name!r}, and it cannot be had from the Hugging Face hub "
                                f"({reason_of(error)}); download it where there is a network and give the folder's "
                            "path") from error
