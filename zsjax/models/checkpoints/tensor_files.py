"""Safetensors files through the `safetensors` package, with errors that name file and tensor.

A file is opened anew for each read: a header costs well under a millisecond, and the mapped pages of one tensor are let
go before the next is read, so that loading a model needs about one tensor of host memory beside the model.
"""

import dataclasses
import json
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from zsjax.errors import InputError, OutputError, pointer, reading, reason_of

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in `file`. `dtype` is the format's own name of it: a key of `DTYPES` if it can be read."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def read(self, index=...) -> np.ndarray:
        """The part `index` (... or a tuple of slices with step 1) in memory of its own; only its pages are read."""
        from safetensors import safe_open

        if not math.prod(self.shape):
            return np.zeros(self.shape, DTYPES[self.dtype])[index]
        with safe_open(self.file, framework="numpy") as f:
            return f.get_slice(self.name)[index]


def read_header(file) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a safetensors file, or cut short.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(file)
    try:
        with reading(file), safe_open(file, framework="numpy") as f:
            parts = {name: f.get_slice(name) for name in f.keys()}
            return {name: StoredTensor(file, name, part.get_dtype(), tuple(part.get_shape()))
                    for name, part in parts.items()}
    except SafetensorError as error:
        what = f"or damaged: {reason_of(error)}; copy or download it again"
        raise InputError(f"{file}: {_cut_short(file) or 'not a safetensors file, ' + (pointer(file) or what)}") from None


def _cut_short(file: Path) -> str:
    """What a file that ends too early lacks, "" if that is not what is wrong with it."""
    with open(file, "rb") as f:
        size, header_size = file.stat().st_size, int.from_bytes(f.read(8), "little")
        try:
            header = json.loads(f.read(header_size)) if 8 + header_size <= size else {}
            ends = {name: 8 + header_size + entry["data_offsets"][1] for name, entry in header.items()
                    if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return ""
    lost = sorted((end, name) for name, end in ends.items() if end > size)
    if not lost:
        return ""
    return f"cut short: tensor {lost[0][1]!r} ends at byte {lost[0][0]}, the file has {size}; copy or download it again"


def write_file(file, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file, flushed to disk."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # The package takes addresses: arrays must be contiguous. transformers refuses files without a format.
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # the package's own kind for a full disk
        raise OutputError(f"cannot write {file} ({error}); make room and start the same command again") from error
    with open(file, "rb") as f:
        os.fsync(f.fileno())
