"""The model families: config.json <-> DecoderConfig, and the shapes of published models.

A family is one file in this folder with a `FAMILY`, or, outside the package, a `Family` that is registered:

    register(Family("mine", "MineForCausalLM", read, write))
"""

import importlib
import json
import pkgutil
import re
from pathlib import Path

from zsjax.errors import InputError, InputNotFound, reading
from zsjax.models.checkpoints import contradictions
from zsjax.models.families.family import Family
from zsjax.models.layers import DecoderConfig

__all__ = ["Family", "PRESETS", "config_dict", "families", "family_of", "find_preset", "read_config", "register"]

PRESETS: dict[str, DecoderConfig] = {}
_FAMILIES: dict[str, Family] = {}  # by every model_type that is read


def register(family: Family) -> Family:
    """Makes a family known, in place of one of the same model_type."""
    for kind in (family.model_type, *family.also_reads):
        _FAMILIES[kind] = family
    PRESETS.update(family.presets)
    return family


for _module in ("qwen2", "qwen3", "llama"):  # the order in which errors and plans name them; others follow
    register(importlib.import_module(f"{__name__}.{_module}").FAMILY)
for _module in pkgutil.iter_modules(__path__):
    _family = getattr(importlib.import_module(f"{__name__}.{_module.name}"), "FAMILY", None)
    if _family is not None and _family.model_type not in _FAMILIES:
        register(_family)


def families() -> list[Family]:
    """All that are known."""
    return list({family.model_type: family for family in _FAMILIES.values()}.values())


def family_of(model_type) -> Family:
    """The family that reads a model_type.

    Raises:
      ValueError: there is none.
    """
    if model_type not in _FAMILIES:
        raise InputError(f"model_type={model_type!r} is not supported; supported are {', '.join(_FAMILIES)}")
    return _FAMILIES[model_type]


def read_config(path) -> DecoderConfig:
    """The decoder's shape from a checkpoint folder's config.json, of transformers 4 or 5.

    `dtype` becomes the checkpoint's (`dtype` or `torch_dtype`; float32 if it names none).

    Args:
      path: the folder, or the file itself.

    Raises:
      FileNotFoundError: there is no config.json.
      ValueError: not JSON, a field is missing, or a field asks for something that is not implemented.
    """
    file = Path(path)
    if file.is_dir() or file.suffix != ".json":
        file = file / "config.json"
    if not file.is_file():
        raise InputNotFound(f"{file}: no such file; " + (contradictions.no_model(file.parent) or "a checkpoint is a local "
                            "folder with config.json and model.safetensors"))
    with reading(file):
        text = file.read_text(encoding="utf-8")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{file}: not JSON: {e}; copy the model's config.json again") from None
    if isinstance(raw, dict) and "model_type" not in raw and (advice := contradictions.no_model(file.parent)):
        raise InputError(f"{file.parent} is not a model: {advice}")
    try:
        return family_of(contradictions.check_fields(raw).get("model_type")).read(raw)
    except ValueError as e:
        raise InputError(f"{file}: {e}") from None


def config_dict(config: DecoderConfig, *, dtype: str, eos_ids=(), pad_id=None, bos_id=None) -> dict:
    """The fields of config.json, in the form of transformers 4, which 5 reads as well.

    Args:
      config: the decoder.
      dtype: name of the weights' dtype.
      eos_ids: ids that end a generation. Written even if empty: Llama's class would otherwise assume id 2.
      pad_id, bos_id: None writes null.

    Raises:
      ValueError: no transformers model of `config.model_type` computes what this decoder does.
    """
    family, eos = family_of(config.model_type), list(eos_ids)
    return {"architectures": [family.architecture], "model_type": family.model_type, **family.write(config),
            "torch_dtype": dtype, "bos_token_id": bos_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None, "pad_token_id": pad_id}


def find_preset(name: str) -> DecoderConfig | None:
    """The shape of a published model by its preset's or its hub's name ("google/gemma-3-270m-it"), or None."""

    def plain(name):
        return re.sub(r"[-_]", "", name.lower())

    name = re.sub(r"-(instruct|base|it|pt)$", "", name.rstrip("/").split("/")[-1].lower())
    return next((config for known, config in PRESETS.items() if plain(known) == plain(name)), None)
