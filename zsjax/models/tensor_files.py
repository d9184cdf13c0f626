"""The safetensors format, read through a memory map and written one tensor at a time.

A file is 8 bytes of little-endian header size, a JSON header {name: {dtype, shape, data_offsets}}, and the raw bytes of
the tensors, row-major, without holes (https://github.com/huggingface/safetensors#format). Reading it here instead of
by the package gives errors that name file and tensor, bfloat16 without torch, and slices that touch only the pages they
need; writing it here keeps one tensor in memory instead of a whole shard.
"""

import dataclasses
import json
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64,
          "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the reference implementation's limit, against absurd sizes of damaged files


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `offset` bytes into `file`."""

    file: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """The tensor as a read-only memory map: no byte is read before it is used."""
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def read_header(file) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a safetensors file, cut short, or with a tensor of a dtype that is not supported.
    """
    file = Path(file)
    size = file.stat().st_size
    with open(file, "rb") as f:
        header_size = int.from_bytes(f.read(8), "little")
        if size < 8 or header_size > MAX_HEADER or 8 + header_size > size:
            raise ValueError(f"{file}: not a safetensors file, or cut short: it has {size} bytes and its first eight "
                             f"announce a header of {header_size}")
        try:
            header = json.loads(f.read(header_size))
        except ValueError as e:
            raise ValueError(f"{file}: the safetensors header is not JSON: {e}") from None
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{file}: tensor {name!r} has dtype {entry['dtype']}, supported are {sorted(DTYPES)}")
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{file}: tensor {name!r} of shape {shape} and dtype {dtype} does not fill its "
                             f"{stop - start} bytes")
        if 8 + header_size + stop > size:
            raise ValueError(f"{file}: cut short: tensor {name!r} ends at byte {8 + header_size + stop}, "
                             f"the file has {size}; copy or download it again")
        tensors[name] = StoredTensor(file, name, dtype, shape, 8 + header_size + start)
    return tensors


def write_file(file, tensors: dict[str, tuple], load) -> None:
    """Writes a safetensors file, flushed to disk.

    Args:
      file: path.
      tensors: name -> (shape, numpy dtype).
      load: name -> array of that shape and dtype; called once a name, when its turn comes.
    """
    # Wide dtypes first: every tensor then starts at a multiple of its item size, which readers that map need.
    names = sorted(tensors, key=lambda name: -np.dtype(tensors[name][1]).itemsize)
    header, offset = {"__metadata__": {"format": "pt"}}, 0  # transformers refuses files without a format
    for name in names:
        shape, dtype = tensors[name]
        stop = offset + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": CODES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # tensors start on a cache line of the map
    with open(file, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = np.ascontiguousarray(load(name))
            if array.shape != tuple(tensors[name][0]) or array.dtype != np.dtype(tensors[name][1]):
                raise ValueError(f"tensor {name!r} is {array.dtype}{array.shape}, announced as {tensors[name]}")
            f.write(array.reshape(-1).view(np.uint8).data)  # bytes: bfloat16 has no buffer protocol
        f.flush()
        os.fsync(f.fileno())
