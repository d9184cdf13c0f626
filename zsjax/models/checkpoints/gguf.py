"""GGUF files (llama.cpp's format) turned into Hugging Face folders: `python -m zsjax.launch import FILE.gguf OUT`.

Reading and dequantising is the `gguf` package's work. What the format changes is undone here: llama.cpp adds the offset to
Gemma's norms, and interleaves the halves of Llama's rotary heads (llama.cpp, convert_hf_to_gguf.py). Each family says in
its `Family` what its files need. A GGUF file names no class of transformers: config.json is made from its metadata.
"""

import dataclasses
import functools
import re
import tempfile
from pathlib import Path

import numpy as np

from zsjax.errors import InputError, InputNotFound, reason_of
from zsjax.models.checkpoints import contradictions, gguf_tokenizer, hf
from zsjax.models.families import Family, families
from zsjax.models.layers import DecoderConfig, RopeScaling, rope_frequencies

__all__ = ["GgufFile", "import_gguf", "read_gguf"]

# Metadata below the architecture's name -> config.json.
_FIELDS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window", "rope.freq_base_swa": "rope_local_base_freq",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    "expert_count": "num_experts",
}
MAX_ENTRIES = 1 << 21  # of an array in the metadata; vocabularies of 262,144 tokens have twice as many merges
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1's stretched frequencies: what each is divided by, float32[h/2]


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """An open GGUF file.

    Attributes:
      path: of the file.
      metadata: its keys and values, arrays as lists.
      tensors: name -> the package's ReaderTensor; the data stay in the file until they are read.
    """

    path: Path
    metadata: dict
    tensors: dict

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the kind of model."""
        return self.metadata.get("general.architecture", "")

    def of_model(self, name: str, default=None):
        """Metadata below the architecture's name."""
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32, as [out, in].

        Raises:
          ValueError: its type is unknown to the gguf package.
        """
        import gguf

        tensor = self.tensors[name]
        try:
            return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError:
            raise InputError(f"{self.path}: tensor {name!r} has type {tensor.tensor_type.name}, which the package gguf "
                             "cannot dequantise; use a file of another quantisation, such as Q4_K_M or F16") from None


def read_gguf(path) -> GgufFile:
    """Opens a GGUF file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a GGUF file, cut short, damaged, or a version that the gguf package does not read.
      ModuleNotFoundError: the package gguf is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputNotFound(f"{path}: no such file; give a .gguf file")
    with open(path, "rb") as f:
        magic = f.read(4)
    if magic != b"GGUF":
        raise InputError(f"{path}: not a GGUF file (it begins with {magic!r}); give a .gguf file")
    try:
        reader = _bounded_reader()
    except ImportError:
        raise InputError(f"{path}: reading GGUF files needs the package gguf; pip install 'zsjax[gguf]'") from None
    try:
        reader = reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the reader takes views of what is not there: whatever numpy raises
        raise InputError(f"{path}: cut short or damaged ({reason_of(error)}); copy or download it again") from None
    end, size = max((t.data_offset + t.n_bytes for t in reader.tensors), default=0), path.stat().st_size
    if end > size:
        raise InputError(f"{path}: cut short: its tensors end at byte {end}, the file has {size}; copy or download it again")
    return GgufFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


@functools.cache
def _bounded_reader():
    """The package's reader, but one that stops where the file ends.

    Its own takes what is there: an array of a damaged length would be read in as many steps, behind the end of the file.
    """
    import gguf

    class BoundedReader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, *args, **options):
            found = super()._get(offset, dtype, count, *args, **options)
            if len(found) < count:
                raise ValueError(f"the file ends before byte {offset + int(count) * np.dtype(dtype).itemsize}")
            return found

        def _get_field_parts(self, orig_offs, raw_type):
            if raw_type == gguf.GGUFValueType.ARRAY and (length := self._get(orig_offs + 4, np.uint64)[0]) > MAX_ENTRIES:
                raise ValueError(f"an array of {length} entries in the metadata; at most {MAX_ENTRIES} are read")
            return super()._get_field_parts(orig_offs, raw_type)

    return BoundedReader


def import_gguf(path, out) -> DecoderConfig:
    """Writes a Hugging Face folder, weights in float32 and tokenizer, that `load_hf`, transformers and vLLM read.

    Args:
      path: the .gguf file, of a family in `zsjax.models.families`.
      out: folder to make; an empty folder or an earlier checkpoint there is replaced, at the end.

    Returns:
      The model's DecoderConfig.

    Raises:
      FileNotFoundError, FileExistsError, ValueError: one line, as `read_gguf` and `save_hf`; or the file's architecture,
        a field, a tensor or the tokenizer is not supported.
    """
    file = read_gguf(path)
    config, params = read_model(file)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = gguf_tokenizer.write(file.metadata, folder, family_of_file(file).eos_names, file.path,
                                         vocab_size=config.vocab_size)
        hf.save_hf(out, config, params, tokenizer=tokenizer)
    return config


def family_of_file(file: GgufFile) -> Family:
    """The family of a file. Raises ValueError where there is none."""
    known = {family.gguf_architecture: family for family in families() if family.gguf_architecture}
    if file.architecture not in known:
        raise InputError(f"{file.path}: general.architecture={file.architecture!r} is not supported; supported are "
                         f"{', '.join(known)}")
    return known[file.architecture]


def read_model(file: GgufFile):
    """(DecoderConfig, params as numpy float32 arrays) of a file."""
    family = family_of_file(file)
    try:
        config = family.read(_config_fields(file, family))
    except ValueError as error:
        raise InputError(f"{file.path}: {error}") from None
    named, treedef = hf.named_specs(config)
    names = _stored_names(file, config, named)
    surplus = sorted(set(file.tensors) - set(names) - {ROPE_FACTORS})
    if surplus:
        raise InputError(f"{file.path}: surplus tensor {surplus[0]!r}: model_type={config.model_type!r} has no place for it")
    params = []
    for stored, (name, transposed, spec) in zip(names, named, strict=True):
        array = file.read(stored)
        if family.gguf_interleaved and re.search(r"\.attn_[qk]\.", stored):
            array = halves_apart(array, config.head_dim)
        if config.norm_offset and "norm" in name:
            array = array - np.float32(config.norm_offset)
        shape = spec.shape[::-1] if transposed else spec.shape
        if array.shape != shape:
            raise InputError(f"{file.path}: tensor {stored!r} has shape {array.shape}, the metadata ask for {shape}")
        params.append(array.T if transposed else array)
    return config, treedef.unflatten(params)


def halves_apart(array, head_dim: int):
    """Rows of each head from llama.cpp's order, where the two numbers that turn together are neighbours, to Hugging
    Face's, where they are h/2 apart."""
    pairs = array.reshape(-1, head_dim // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _config_fields(file: GgufFile, family: Family) -> dict:
    """The fields of config.json, from metadata and tensors."""
    if "token_embd.weight" not in file.tensors:
        raise InputError("tensor 'token_embd.weight' is missing")
    raw = {ours: file.of_model(name) for name, ours in _FIELDS.items() if file.of_model(name)}
    # float32 on file: 1e-6 is 9.99999997e-7
    raw = {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in raw.items()}
    listed = [name for name, value in raw.items() if isinstance(value, list)]
    if listed:
        raise InputError(f"{file.architecture}: {listed[0]} differs between layers, which is not supported")
    contradictions.check_fields(raw)
    raw |= {"model_type": family.model_type, "tie_word_embeddings": "output.weight" not in file.tensors,
            "vocab_size": int(file.tensors["token_embd.weight"].shape[1])}
    for needed in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
        if needed not in raw:
            raise InputError(f"metadata of {needed} for architecture {file.architecture!r} are missing")
    # Qwen3's class assumes 128 where nothing is said, llama.cpp D / H.
    raw.setdefault("head_dim", raw["hidden_size"] // raw["num_attention_heads"])
    turned = file.of_model("rope.dimension_count", raw["head_dim"])
    if turned != raw["head_dim"]:
        raise InputError(f"{file.architecture}.rope.dimension_count={turned} is not supported; only the head size "
                         f"{raw['head_dim']} is")
    return raw | _scaling(file, raw) | family.gguf_fields(file.of_model, raw)


def _scaling(file: GgufFile, raw: dict) -> dict:
    """`rope_scaling`, from metadata or from Llama 3.1's tensor of factors."""
    kind = file.of_model("rope.scaling.type", "none")
    if kind != "none":
        rope = {"rope_type": kind, "factor": file.of_model("rope.scaling.factor")}
        original = file.of_model("rope.scaling.original_context_length")
        return {"rope_scaling": rope | ({"original_max_position_embeddings": original} if original else {})}
    if ROPE_FACTORS not in file.tensors:
        return {}
    factors = file.read(ROPE_FACTORS)
    s = RopeScaling("llama3", float(factors.max()), 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    shape = dict(vocab_size=1, embed_dim=2, num_layers=1, num_heads=1, num_kv_heads=1, mlp_dim=1, head_dim=raw["head_dim"],
                 rope_theta=raw.get("rope_theta", 1e4))
    plain, stretched = (rope_frequencies(DecoderConfig(**shape, rope_scaling=scaling))[0] for scaling in (None, s))
    if factors.shape != plain.shape or not np.allclose(np.asarray(plain / stretched), factors, rtol=1e-4):
        raise InputError(f"tensor {ROPE_FACTORS!r} is not Llama 3's stretch of an original context of 8192 tokens, the only "
                         "one that is supported")
    return {"rope_scaling": {"rope_type": "llama3", "factor": s.factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192}}


def _stored_names(file: GgufFile, config: DecoderConfig, named) -> list[str]:
    """The file's name of each Hugging Face tensor."""
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    names, stored = gguf.get_tensor_name_map(arch, config.num_layers), []
    for name, *_ in named:
        base, _, end = name.rpartition(".")
        stored.append(f"{names.get_name(base)}.{end}")
        if stored[-1] not in file.tensors:
            raise InputError(f"{file.path}: tensor {stored[-1]!r} ({name}) is missing")
    return stored
