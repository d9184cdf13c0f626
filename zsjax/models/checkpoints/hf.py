"""Checkpoints in Hugging Face's form: a folder of config.json and safetensors, read into our tree and written back.

Parameter names follow Hugging Face's: parameters are renamed, and dense kernels transposed to [in, out].
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.errors import InputError, InputExists, InputNotFound
from zsjax.models.checkpoints import hub, tensor_files
from zsjax.models.checkpoints.contradictions import why_missing, why_surplus
from zsjax.models.decoder import ParamSpec, param_specs
from zsjax.models.families import config_dict, family_of, read_config
from zsjax.models.layers import DecoderConfig
from zsjax.parallel.files import new_folder

__all__ = ["load_hf", "read_config", "save_hf"]

SHARD_BYTES = 5_000_000_000
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json")


def hf_name(path) -> tuple[str, bool]:
    """(Hugging Face's name of the parameter at a tree path, whether it is stored transposed)."""
    parts = [str(getattr(key, "key", getattr(key, "idx", None))) for key in path]
    parts = ["self_attn" if part == "attn" else part for part in parts]
    transposed = parts[-1] == "kernel"
    if parts[-1] in ("kernel", "bias"):
        parts[-1] = "weight" if transposed else "bias"
    else:
        parts.append("weight")
    return ".".join(parts if parts[0] == "lm_head" else ["model", *parts]), transposed


def named_specs(config):
    """([(Hugging Face's name, whether it is stored transposed, ParamSpec)], the tree's structure)."""

    def is_spec(x):
        return isinstance(x, ParamSpec)

    leaves, treedef = jax.tree_util.tree_flatten_with_path(param_specs(config), is_leaf=is_spec)
    return [(*hf_name(path), spec) for path, spec in leaves], treedef


def _stored_shape(spec, transposed):
    return spec.shape[::-1] if transposed else spec.shape


# ---------------------------------------------------------------------------------------------------------- reading

def _as_a_model_names(tensors: dict) -> dict:
    """The tensors by their names in a whole model, with "model." before "embed_tokens".

    Files of the bare decoder, such as Qwen3-Embedding's, have no prefix. Wrappers add to it, such as torch.compile's
    "_orig_mod." and DistributedDataParallel's "module.".
    """
    embeddings = [name for name in tensors if name.endswith("embed_tokens.weight")]
    if len(embeddings) != 1 or embeddings[0] == "model.embed_tokens.weight":
        return tensors
    inside = embeddings[0].removesuffix("embed_tokens.weight")
    heads = ("lm_head.weight", inside.removesuffix("model.") + "lm_head.weight")

    def own(name):
        return "lm_head.weight" if name in heads else (
            f"model.{name.removeprefix(inside)}" if name.startswith(inside) else name)

    return {own(name): tensor for name, tensor in tensors.items()}


def _stored_tensors(folder: Path) -> dict[str, tensor_files.StoredTensor]:
    """Every tensor of the single file or of the shards that the index names."""
    if (folder / WEIGHTS).is_file():
        return tensor_files.read_header(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        pickles = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in folder.glob(pattern))
        if pickles:
            raise InputError(
                f"{folder} holds pickled weights ({pickles[0]}), which can run code when read and are refused. Convert "
                "them once with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)")
        raise InputNotFound(f"{folder} has no {WEIGHTS} and no {INDEX}; copy the model's weights there")
    try:
        weight_map = dict(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
        escaping = [shard for shard in weight_map.values() if Path(shard).name != shard or len(shard.encode()) > 255]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise InputError(f"{folder / INDEX}: not a safetensors index: {e!r:.200}; copy the file again") from None
    if escaping:
        raise InputError(f"{folder / INDEX}: weight_map names {escaping[0]!r:.200}, which is not a file of this folder; "
                         "copy the file again")
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        file = folder / shard
        if not file.is_file():
            missing = [name for name, s in weight_map.items() if s == shard]
            raise InputNotFound(f"{file}: shard is missing; {INDEX} says it holds {len(missing)} tensors, such as "
                                    f"{missing[0]!r}; copy or download it again")
        tensors |= tensor_files.read_header(file)
    absent = [name for name, shard in weight_map.items() if name not in tensors]
    if absent:
        raise InputError(f"{folder / weight_map[absent[0]]}: tensor {absent[0]!r} is missing, though {INDEX} lists it; "
                         "copy both again")
    return tensors


def _check(folder, config, named, tensors):
    """Raises ValueError unless the tensors are those of the config, with their shapes."""
    wanted = {name: _stored_shape(spec, transposed) for name, transposed, spec in named}
    for name, shape in wanted.items():
        if name not in tensors:
            raise InputError(f"{folder}: tensor {name!r} of shape {shape} is missing: {why_missing(name, tensors, config)}")
        stored = tensors[name]
        if stored.dtype not in tensor_files.DTYPES:
            raise InputError(f"{stored.file}: tensor {name!r} has dtype {stored.dtype}; supported are "
                             f"{', '.join(tensor_files.DTYPES)}")
        if stored.shape != shape:
            raise InputError(f"{stored.file}: tensor {name!r} has shape {stored.shape}, config.json asks for {shape}: "
                             "copy config.json and weights from one source")
    for name in sorted(set(tensors) - set(wanted)):
        if name.endswith("rotary_emb.inv_freq"):  # a buffer that old Llama checkpoints carry
            continue
        if name == "lm_head.weight" and config.tie_embeddings:
            if _equal(tensors[name], tensors["model.embed_tokens.weight"]):
                continue  # Qwen3's small models store it twice
            raise InputError(f"{tensors[name].file}: tensor {name!r} differs from the embedding, but config.json has "
                             "tie_word_embeddings=true: set it to false if the file is right")
        raise InputError(f"{tensors[name].file}: surplus tensor {name!r}: {why_surplus(name, tensors, config)}")


def _check_tokenizer(folder, config, tokenizer) -> DecoderConfig:
    """The config with the tokenizer's `num_ids`; ValueError where its ids are not those that the model was trained with."""
    path = getattr(tokenizer, "path", "")
    if getattr(tokenizer, "ids_in_use", tokenizer.vocab_size) > config.vocab_size:
        raise InputError(f"{folder}: tensor 'model.embed_tokens.weight' has {config.vocab_size} rows, but the tokenizer "
                         f"{path} has {tokenizer.vocab_size} ids: give the model's own tokenizer")
    difference = tokenizer.conflict(folder) if hasattr(tokenizer, "conflict") else None
    if difference:
        raise InputError(f"{folder}: the model was made with other ids than the tokenizer {path} has: {difference}; set "
                         f"tokenizer to {str(folder)!r}")
    return config.for_tokenizer(tokenizer)


def _equal(a, b, rows: int = 4096) -> bool:
    """Whether two stored tensors hold the same numbers, a few rows at a time."""
    parts = [np.s_[i:min(i + rows, a.shape[0])] for i in range(0, a.shape[0], rows)]
    return a.shape == b.shape and all(np.array_equal(a.read(part), b.read(part)) for part in parts)


def _place(stored, transposed, dtype, sharding, check_finite):
    """One tensor onto its devices; of the file only the pages of local shards are read, a shard at a time."""
    shape = stored.shape[::-1] if transposed else stored.shape
    dtype = tensor_files.DTYPES[stored.dtype] if dtype is None else dtype

    def read(index):
        index = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True))
        array = stored.read(index[::-1]).T if transposed else stored.read(index)
        with np.errstate(over="ignore"):  # check_finite reports it
            array = np.asarray(array, dtype=dtype, order="C")
        if check_finite and not np.isfinite(array).all():
            raise InputError(f"{stored.file}: tensor {stored.name!r} holds NaN or infinite values (as {array.dtype})")
        return array

    if sharding is None:
        return jnp.asarray(read((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, read)


def load_hf(path, *, mesh=None, rules=None, dtype=None, tokenizer=None, check_finite: bool = False, head: bool = True):
    """Reads a Hugging Face checkpoint of a known family (`zsjax.models.families`) without torch or transformers.

    Files are memory-mapped, and each tensor goes straight to its devices. The extra host memory is about twice the largest
    tensor, or with a mesh the largest shard: as stored and as kept (benchmarks/load.py).

    Args:
      path: folder with config.json and model.safetensors, or with an index and shards; or the name of a model on the
        Hugging Face hub, "hf:owner/name" or "owner/name", where the machine has a network.
      mesh: None puts everything on the default device.
      rules: logical axis -> mesh axis; None with a mesh is `zsjax.parallel.mesh.TRAIN_RULES`.
      dtype: of the parameters and of the config (activations); None keeps the file's.
      tokenizer: None, or a tokenizer that must fit: the embedding needs a row for each of its `ids_in_use`, and a
        tokenizer in the folder must not contradict it. The config then has `num_ids`.
      check_finite: refuse NaN and infinite weights; reads every number on the host.
      head: False for an embedding model: an lm_head is not needed, and not read.

    Returns:
      (DecoderConfig, params).

    Raises:
      FileNotFoundError: the folder, config.json, the weights or a shard is missing, or the hub cannot be reached.
      ValueError: names file and tensor: pickled weights, a file cut short, a missing or surplus tensor, a wrong shape
        or dtype, values that are not finite, a tokenizer that does not fit, or a config that needs more than the decoder
        has.
    """
    folder = hub.local_folder(path)
    config = read_config(folder)
    if tokenizer is not None:
        config = _check_tokenizer(folder, config, tokenizer)
    own_name = family_of(config.model_type).tensor_name
    tensors = {own_name(name): tensor for name, tensor in _stored_tensors(folder).items() if own_name(name)}
    tensors = _as_a_model_names(tensors)
    if not head and not config.tie_embeddings:
        config = dataclasses.replace(config, tie_embeddings=True)  # the config of a tree without lm_head
        tensors.pop("lm_head.weight", None)
    named, treedef = named_specs(config)
    _check(folder, config, named, tensors)
    if dtype is not None:
        config = dataclasses.replace(config, dtype=jnp.dtype(dtype).name)
    shardings = [None] * len(named)
    if mesh is not None:
        from zsjax.models.placement import param_shardings
        from zsjax.parallel.mesh import TRAIN_RULES

        shardings = jax.tree.leaves(param_shardings(config, mesh, TRAIN_RULES if rules is None else rules))
    params = [_place(tensors[name], transposed, dtype, sharding, check_finite)
              for (name, transposed, _), sharding in zip(named, shardings, strict=True)]
    return config, treedef.unflatten(params)


# ---------------------------------------------------------------------------------------------------------- writing

def _plan_shards(tensors: dict, shard_bytes: int) -> list[dict]:
    """Cuts name -> (shape, dtype) in order into dicts of at most shard_bytes each, or of one larger tensor."""
    shards, used = [{}], 0
    for name, (shape, dtype) in tensors.items():
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if shards[-1] and used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = (shape, dtype)
        used += size
    return shards


def _write_weights(folder: Path, tensors: dict, load, shard_bytes: int):
    """Writes the shards; one at a time is in host memory."""
    shards = _plan_shards(tensors, shard_bytes)
    if len(shards) == 1:
        tensor_files.write_file(folder / WEIGHTS, {name: load(name) for name in tensors})
        return
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensor_files.write_file(folder / file, {name: load(name) for name in shard})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in tensors.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(file: Path, value):
    file.write_text(json.dumps(value, indent=2) + "\n")


def _write_tokenizer(folder: Path, tokenizer):
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
        return
    source = Path(getattr(tokenizer, "path", tokenizer))
    kept = source if source.is_dir() else source.parent
    # Beside a SentencePiece model, a tokenizer.json would be read in its place.
    aside = ("tokenizer.json", "tokenizer.model") if source.suffix == ".model" else ()
    names = [name for name in _TOKENIZER_FILES if name not in aside]
    files = [kept / name for name in names if (kept / name).is_file()]
    if source.is_file():
        files = [*[file for file in files if file != source], source]
    if not files:
        raise InputNotFound(f"{source}: no tokenizer files; give the folder of tokenizer.json")
    for file in files:
        shutil.copyfile(file, folder / ("tokenizer.model" if file.suffix == ".model" else file.name))


def save_hf(path, config: DecoderConfig, params, *, tokenizer=None, dtype=None, shard_bytes: int = SHARD_BYTES) -> Path:
    """Writes a folder that transformers 4 and 5, vLLM and `load_hf` read.

    config.json, generation_config.json, model.safetensors (or shards and their index) and the tokenizer's files. All is
    written to a temporary folder and renamed at the end: a crash never leaves half a model at `path`.

    Args:
      path: folder to make. An empty folder or an earlier checkpoint there is replaced.
      config, params: the decoder; parameters may be sharded over devices of this process.
      tokenizer: None, a folder or file to copy from, an object with such a `path`, or with `save_pretrained`. Its
        `eos_ids`, `pad_id` and `bos_ids` go into the configs.
      dtype: of the stored tensors; None keeps the parameters'.
      shard_bytes: largest file, in bytes.

    Returns:
      path, as a Path.

    Raises:
      OutputError: the folder cannot be written.
      FileExistsError: `path` is a file, or a folder without a checkpoint that is not empty.
      ValueError: no model of transformers equals this decoder, or params do not fit config.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / "config.json").is_file())):
        raise InputExists(f"{path} exists and is not a checkpoint folder; use another path")
    named, treedef = named_specs(config)
    leaves, given = jax.tree.flatten(params)
    if given != treedef:
        raise ValueError(f"params do not fit the config: expected the tree {treedef}, got {given}")
    arrays, tensors, transposes = {}, {}, {}
    for (name, transposed, spec), leaf in zip(named, leaves, strict=True):
        if leaf.shape != spec.shape:
            raise ValueError(f"tensor {name!r} has shape {leaf.shape}, the config asks for {spec.shape}")
        arrays[name], transposes[name] = leaf, transposed
        tensors[name] = (_stored_shape(spec, transposed), np.dtype(leaf.dtype if dtype is None else dtype))

    def load(name):
        array = np.asarray(jax.device_get(arrays[name])).astype(tensors[name][1], copy=False)
        return array.T if transposes[name] else array

    eos_ids, pad_id = tuple(getattr(tokenizer, "eos_ids", ())), getattr(tokenizer, "pad_id", None)
    bos_id = (*getattr(tokenizer, "bos_ids", ()), None)[0]
    main_dtype = tensors["model.embed_tokens.weight"][1].name
    fields = config_dict(config, dtype=main_dtype, eos_ids=eos_ids, pad_id=pad_id, bos_id=bos_id)
    with new_folder(path) as temporary:
        _write_json(temporary / "config.json", fields)
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        _write_json(temporary / "generation_config.json", {key: fields[key] for key in ids if fields[key] is not None})
        if tokenizer is not None:
            _write_tokenizer(temporary, tokenizer)
        _write_weights(temporary, tensors, load, shard_bytes)
    return path
