"""The tokenizer of Qwen2 for tests: unpacked once a process, loaded by `load_tokenizer`."""

import functools
import gzip
import pathlib
import tempfile

from zsjax.data.tokenization import load_tokenizer

ASSETS = pathlib.Path(__file__).parent / "assets" / "qwen2"
_kept = []  # temporary folders live as long as the process


@functools.cache
def qwen2_folder() -> pathlib.Path:
    """A folder with vocab.json, merges.txt and the configs, as Hugging Face has it."""
    _kept.append(tempfile.TemporaryDirectory())
    folder = pathlib.Path(_kept[-1].name)
    for file in ASSETS.iterdir():
        if file.suffix == ".gz":
            (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@functools.cache
def qwen2():
    """The `Tokenizer`."""
    return load_tokenizer(qwen2_folder())
