"""What is wrong with a checkpoint folder: config.json against the weights, and folders with a model deeper inside."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
           "intermediate_size", "max_position_embeddings", "sliding_window", "original_max_position_embeddings")
_NUMBERS = ("rms_norm_eps", "rope_theta")
_FLAGS = ("tie_word_embeddings", "use_sliding_window", "attention_bias")
_ROPE_NUMBERS = ("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
                 "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "partial_rotary_factor")
_MOST_LAYERS = 1 << 14  # each has a dozen parameters to name
_LARGEST = 1 << 40  # of any count: beyond it, the file is damaged


def check_fields(raw) -> dict:
    """config.json's value if each field that is read has the type it must have; ValueError names the first that has not."""
    if not isinstance(raw, dict):
        raise ValueError(f"holds a {type(raw).__name__}, not an object; copy the model's config.json again")
    counts = {"max_window_layers": 0, **dict.fromkeys(_COUNTS, 1)}
    for name, value in raw.items():
        if value is None:
            continue
        if name in counts and not (type(value) is int and counts[name] <= value <= _LARGEST):
            raise ValueError(f"{name}={value!r:.80} is not a whole number from {counts[name]}; copy the model's file again")
        if name == "num_hidden_layers" and value > _MOST_LAYERS:
            raise ValueError(f"{name}={value} is more than {_MOST_LAYERS}; copy the model's file again")
        if name in _NUMBERS and not (type(value) in (int, float) and 0 < value < 1e30):
            raise ValueError(f"{name}={value!r:.80} is not a number above 0; copy the model's file again")
        if name in _FLAGS and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r:.80} is not a truth value; use true or false")
        if name in ("rope_scaling", "rope_parameters"):
            _check_rope(name, value)
        if name == "layer_types" and not (isinstance(value, list) and all(isinstance(kind, str) for kind in value)):
            raise ValueError(f"layer_types={value!r:.80} is not a list of names; copy the model's file again")
        if name in ("model_type", "dtype", "torch_dtype") and not isinstance(value, str):
            raise ValueError(f"{name}={value!r:.80} is not a name; copy the model's file again")
    return raw


def _check_rope(name, value):
    if not isinstance(value, dict):
        raise ValueError(f"{name}={value!r:.80} is not an object; copy the model's file again")
    for field, part in value.items():
        if field in ("type", "rope_type"):
            fits, kind = isinstance(part, str), "a name"
        elif field == "truncate":
            fits, kind = isinstance(part, bool), "true or false"
        elif part is None or isinstance(part, list) and field not in _ROPE_NUMBERS:
            continue
        elif isinstance(part, dict) and field not in _ROPE_NUMBERS:
            _check_rope(f"{name}.{field}", part)
            continue
        else:
            fits, kind = type(part) in (int, float) and 0 < part < 1e30, "a number above 0"
        if not fits:
            raise ValueError(f"{name}.{field}={part!r:.80} is not {kind}; copy the model's file again")


def models_inside(folder: Path) -> list[Path]:
    """The folders up to two levels inside that hold a model: those a run's folder has, for example."""
    found = []
    for file in sorted([*folder.glob("*/config.json"), *folder.glob("*/*/config.json")])[:200]:
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(raw, dict) and "model_type" in raw:
            found.append(file.parent)
    return found


def no_model(folder: Path) -> str:
    """What to give instead of a folder that is not a model; "" where nothing better is known."""
    if folder.is_file():
        return f"{folder} is a file: give its folder"
    if (folder / "adapter_config.json").is_file():
        return "it holds an adapter only: merge it into its base (merge_and_unload of peft), save that and give its folder"
    if not folder.is_dir():
        return ""
    inside = models_inside(folder)
    if inside:
        return f"the model is in a folder inside: give {' or '.join(str(path) for path in inside[:4])}"
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        return (f"it is the folder of a run that has no model yet: write one with python -m zsjax.launch export OUT "
                f"--workdir {folder}")
    return ""


def why_missing(name: str, names: Mapping, config) -> str:
    """The likely reason why a file lacks a tensor that config.json asks for, and what to do."""
    if name == "lm_head.weight":
        return ("config.json has tie_word_embeddings=false. An embedding model has no lm_head and cannot write: load it "
                "with head=False, as search.embedder does; if the model shares its embedding, set tie_word_embeddings to "
                "true")
    if layers := _layers(name, names, config):
        return layers
    return "the weights are not those of config.json, or incomplete: copy both from one source again"


def why_surplus(name: str, names: Mapping, config) -> str:
    """The same for a tensor that config.json has no place for."""
    if layers := _layers(name, names, config):
        return layers
    return "config.json has no place for it: copy config.json and weights from one source again"


def _layers(name, names, config):
    held = {int(match.group(1)) + 1 for other in names if (match := _LAYER.match(other))}
    layer = _LAYER.match(name)
    if not layer or not held or max(held) == config.num_layers or len(held) != max(held):
        return ""
    return (f"config.json has num_hidden_layers={config.num_layers}, the weights have {len(held)} layers; set it to "
            f"{len(held)} if the weights are complete, else copy them again")
