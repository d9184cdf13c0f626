"""config.json of transformers 4 and 5 <-> DecoderConfig.

Follows transformers 5.23 (models/{qwen2,qwen3,llama}/configuration_*.py, modeling_rope_utils.py). Whatever a config
asks for that the decoder does not do is an error that names the field: a checkpoint never runs with other mathematics.
"""

import json
import math
from pathlib import Path

from zsjax.errors import InputError, InputNotFound
from zsjax.models.checkpoints import contradictions
from zsjax.models.layers import DecoderConfig, RopeScaling

# What transformers' config classes assume for absent fields; for the rest see `read_config`.
_DEFAULTS = {
    "qwen2": {"vocab_size": 151936, "max_position_embeddings": 32768},
    "qwen3": {"vocab_size": 151936, "max_position_embeddings": 32768, "head_dim": 128},
    "llama": {"vocab_size": 32000, "max_position_embeddings": 2048},
}
ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
# field -> the only value that is implemented (None: absent or null)
_ONLY = {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0, "quantization_config": None,
         "num_experts": None, "num_local_experts": None, "text_config": None, "vision_config": None,
         "dual_chunk_attention_config": None}
_DTYPES = ("float32", "bfloat16", "float16")


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
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise InputError(f"{file}: not JSON: {e}; copy the model's config.json again") from None
    if isinstance(raw, dict) and "model_type" not in raw and (advice := contradictions.no_model(file.parent)):
        raise InputError(f"{file.parent} is not a model: {advice}")
    try:
        return _from_dict(contradictions.check_fields(raw))
    except ValueError as e:
        raise InputError(f"{file}: {e}") from None


def _from_dict(raw: dict) -> DecoderConfig:
    kind = raw.get("model_type")
    if kind not in _DEFAULTS:
        raise InputError(f"model_type={kind!r} is not supported; supported are {', '.join(_DEFAULTS)}")
    for field, value in _ONLY.items():
        if raw.get(field) is not None and raw[field] != value:
            raise InputError(f"{field}={raw[field]!r} is not supported" + (f"; only {value!r} is" if value else ""))
    if kind != "qwen2" and raw.get("attention_bias"):
        raise InputError(f"attention_bias=true is not supported for model_type={kind!r} (a bias on o_proj)")

    def get(field, default=None):
        value = raw.get(field)
        value = _DEFAULTS[kind].get(field, default) if value is None else value
        if value is None:
            raise InputError(f"{field} is missing")
        return value

    embed_dim, num_heads, num_layers = get("hidden_size"), get("num_attention_heads"), get("num_hidden_layers")
    if raw.get("head_dim") is None and kind != "qwen3" and embed_dim % num_heads:
        raise InputError(f"hidden_size={embed_dim} is no multiple of num_attention_heads={num_heads} and there is no "
                         "head_dim")
    window, sliding_layers = _sliding(raw, kind, num_layers)
    theta, scaling = _rope(raw, get("max_position_embeddings"))
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if dtype not in _DTYPES:
        raise InputError(f"dtype={dtype!r} is not supported; supported are {', '.join(_DTYPES)}")
    return DecoderConfig(
        vocab_size=get("vocab_size"), embed_dim=embed_dim, num_layers=num_layers, num_heads=num_heads,
        num_kv_heads=get("num_key_value_heads", num_heads), head_dim=get("head_dim", embed_dim // num_heads),
        mlp_dim=get("intermediate_size"), rope_theta=theta, rope_scaling=scaling, rms_eps=get("rms_norm_eps", 1e-6),
        tie_embeddings=bool(raw.get("tie_word_embeddings")), qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3",
        max_position=get("max_position_embeddings"), sliding_window=window, sliding_layers=sliding_layers,
        model_type=kind, dtype=dtype)


def _sliding(raw, kind, num_layers):
    """(window or None, the layers that use it), as transformers decides."""
    types = raw.get("layer_types")
    if types is not None:
        unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
        if unknown or len(types) != num_layers:
            raise InputError(f"layer_types has {len(types)} entries and kinds {sorted(set(types))}; supported are "
                             f"full_attention and sliding_attention, one for each of num_hidden_layers={num_layers}")
    # Llama's attention has no window whatever the config says.
    window = raw.get("sliding_window") if kind != "llama" and raw.get("use_sliding_window") else None
    if types is None:
        first = raw.get("max_window_layers", 28)
        layers = tuple(range(first, num_layers)) if window is not None else ()
    else:
        layers = tuple(i for i, t in enumerate(types) if t == "sliding_attention")
    if layers and window is None:
        raise InputError("layer_types asks for sliding_attention, but use_sliding_window and sliding_window give no "
                         f"window for model_type={kind!r}")
    return (window if layers else None), layers


def _rope(raw, max_position):
    """(theta, RopeScaling or None) from rope_parameters, or rope_theta and rope_scaling."""
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(name) or {}
    nested = [key for key, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise InputError(f"{name} with one entry a layer type ({', '.join(nested)}) is not supported")
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{name}.partial_rotary_factor={rope['partial_rotary_factor']} is not supported")
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3", "yarn"):
        raise InputError(f"{name}.rope_type={kind!r} is not supported; supported are default, linear, llama3, yarn")

    def need(field):
        if rope.get(field) is None:
            raise InputError(f"{name}.{field} is missing for rope_type={kind!r}")
        return float(rope[field])

    if kind == "linear":
        return theta, RopeScaling("linear", need("factor"))
    original = (raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
                or max_position)
    if kind == "llama3":
        return theta, RopeScaling("llama3", need("factor"), original, low_freq_factor=need("low_freq_factor"),
                                  high_freq_factor=need("high_freq_factor"))
    factor = max_position / original if "factor" in rope and rope["factor"] is None else need("factor")
    return theta, RopeScaling("yarn", factor, original, beta_fast=float(rope.get("beta_fast") or 32),
                              beta_slow=float(rope.get("beta_slow") or 1),
                              attention_factor=_yarn_attention_factor(rope, factor),
                              truncate=rope.get("truncate", True))


def _yarn_attention_factor(rope, factor):
    """What multiplies cos and sin: given, or from mscale (DeepSeek), or None for yarn's own."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if not (mscale and all_dim):
        return None
    log = math.log(factor) if factor > 1 else 0.0
    return (0.1 * mscale * log + 1.0) / (0.1 * all_dim * log + 1.0)


def config_dict(config: DecoderConfig, *, dtype: str, eos_ids=(), pad_id=None) -> dict:
    """The fields of config.json, in the form of transformers 4, which 5 reads as well.

    Args:
      config: the decoder.
      dtype: name of the weights' dtype.
      eos_ids: ids that end a generation. Written even if empty: Llama's class would otherwise assume id 2.
      pad_id: None writes null.

    Raises:
      ValueError: no transformers model of `config.model_type` computes what this decoder does.
    """
    kind, s = config.model_type, config.rope_scaling
    fitting = {(True, False): "qwen2", (False, True): "qwen3", (False, False): "llama"}
    if fitting.get((config.qkv_bias, config.qk_norm)) != kind:
        raise InputError(f"transformers has no model of model_type={kind!r} with qkv_bias={config.qkv_bias} and "
                         f"qk_norm={config.qk_norm}; qwen2 has biases, qwen3 the norm, llama neither")
    if kind == "llama" and config.sliding_layers:
        raise InputError("sliding_layers cannot be saved for model_type='llama': transformers' Llama has no window")
    if kind == "llama" and config.embed_dim % config.num_heads:
        raise InputError(f"embed_dim={config.embed_dim} must be a multiple of num_heads={config.num_heads} to be "
                         "saved for model_type='llama': transformers refuses it")
    rope = None
    if s is not None:
        rope = {"rope_type": s.kind, "factor": s.factor}
        if s.kind in ("llama3", "yarn"):
            rope["original_max_position_embeddings"] = s.original_max_position
        if s.kind == "llama3":
            rope |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
        if s.kind == "yarn":
            rope |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow, "truncate": s.truncate}
            if s.attention_factor is not None:
                rope["attention_factor"] = s.attention_factor
    eos = list(eos_ids)
    result = {
        "architectures": [ARCHITECTURES[kind]], "model_type": kind, "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "intermediate_size": config.mlp_dim, "hidden_act": "silu",
        "max_position_embeddings": config.max_position, "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta, "rope_scaling": rope, "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, "torch_dtype": dtype,
        "bos_token_id": None, "eos_token_id": eos[0] if len(eos) == 1 else eos or None, "pad_token_id": pad_id,
    }
    if kind == "llama":
        return result | {"attention_bias": False, "mlp_bias": False}
    if kind == "qwen3":
        result["attention_bias"] = False
    sliding = set(config.sliding_layers)
    return result | {
        "use_sliding_window": bool(sliding), "sliding_window": config.sliding_window,
        "max_window_layers": min(sliding, default=config.num_layers),
        "layer_types": ["sliding_attention" if i in sliding else "full_attention" for i in range(config.num_layers)],
    }
