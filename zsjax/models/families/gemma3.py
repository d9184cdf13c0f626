"""Gemma 3's text models (arXiv 2503.19786): sandwich norms of 1 + w, GELU, a scaled embedding, windows on most layers.

A multimodal checkpoint (model_type "gemma3") is read as its text model; its images' tensors are left out.
"""

import math

from zsjax.errors import InputError
from zsjax.models.families.family import (
    Family,
    Fields,
    common_fields,
    layer_types,
    require,
    require_whole_heads,
    scaling_dict,
    sliding_of,
)
from zsjax.models.layers import DecoderConfig

# What transformers' Gemma3TextConfig assumes; the text configs of the multimodal models leave most fields out.
_DEFAULTS = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 6,
}
_ONLY = {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh", "attention_bias": False,
         "attn_logit_softcapping": None, "final_logit_softcapping": None, "use_bidirectional_attention": False}
_THETA, _SLIDING_THETA = 1e6, 1e4


def read(raw: dict) -> DecoderConfig:
    """config.json of Gemma 3, or its `text_config`."""
    if raw.get("model_type") == "gemma3":
        if not isinstance(raw.get("text_config"), dict):
            raise InputError("text_config is missing for model_type='gemma3'")
        outer = {name: raw[name] for name in ("dtype", "torch_dtype", "tie_word_embeddings") if name in raw}
        raw = outer | raw["text_config"]
    fields = Fields(raw, _DEFAULTS, _ONLY)
    shape, types, pattern = fields.shape(), fields.layer_types(), fields.get("sliding_window_pattern")
    if types is None:
        types = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(shape["num_layers"])]
    layers, scalar = sliding_of(types), fields.get("query_pre_attn_scalar")
    if layers and "sliding_window" in raw and raw["sliding_window"] is None:
        raise InputError("sliding_window=null does not fit layer_types with sliding_attention; give the window in tokens")
    return DecoderConfig(
        **shape, **_rope(fields), sliding_window=fields.get("sliding_window") if layers else None, sliding_layers=layers,
        query_scale=None if scalar == shape["head_dim"] else scalar ** -0.5, **_switches(shape["embed_dim"]))


def _switches(embed_dim):
    return dict(qkv_bias=False, qk_norm=True, norm_offset=1.0, post_norms=True, activation="gelu_tanh",
                embed_scale=math.sqrt(embed_dim), model_type="gemma3_text")


def _rope(fields: Fields) -> dict:
    """Of both generations: rope_parameters with one entry a kind of layer (5), or the global layers' rope_theta and
    rope_scaling and the sliding layers' rope_local_base_freq (4)."""
    raw, given = fields.raw, fields.raw.get("rope_parameters") or {}
    full, sliding = given.get("full_attention") or {}, given.get("sliding_attention") or {}
    if given and not (full or sliding):
        raise InputError("rope_parameters of Gemma 3 has one entry a kind of layer: full_attention, sliding_attention")
    full = full | (raw.get("rope_scaling") or {})
    return dict(
        rope_theta=float(full.get("rope_theta") or raw.get("rope_theta") or _THETA),
        rope_scaling=fields.scaling(full, "rope_scaling" if raw.get("rope_scaling") else "rope_parameters.full_attention"),
        sliding_rope_theta=float(sliding.get("rope_theta") or raw.get("rope_local_base_freq") or _SLIDING_THETA),
        sliding_rope_scaling=fields.scaling(sliding, "rope_parameters.sliding_attention"))


def write(config: DecoderConfig) -> dict:
    """The fields of config.json: those of transformers 4, and 5's where 4 has no word for them."""
    theta = config.rope_theta if config.sliding_rope_theta is None else config.sliding_rope_theta
    free = dict(query_scale=..., sliding_rope_theta=..., sliding_rope_scaling=...)
    require(config, **(_switches(config.embed_dim) | free | {"model_type": "gemma3_text"}))
    require_whole_heads(config)
    scalar = config.head_dim if config.query_scale is None else round(config.query_scale ** -2)
    result = common_fields(config) | {
        "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "query_pre_attn_scalar": scalar,
        "sliding_window": config.sliding_window or _DEFAULTS["sliding_window"], "layer_types": layer_types(config),
        "rope_local_base_freq": theta, "attn_logit_softcapping": None, "final_logit_softcapping": None,
    }
    del result["hidden_act"]
    if config.sliding_rope_scaling is not None:
        def entry(theta, scaling):
            return {"rope_theta": theta, "rope_type": "default"} | (scaling_dict(scaling) or {})

        result = {name: x for name, x in result.items() if not name.startswith("rope_")} | {"rope_parameters": {
            "full_attention": entry(config.rope_theta, config.rope_scaling),
            "sliding_attention": entry(theta, config.sliding_rope_scaling)}}
    return result


def tensor_name(name: str) -> str | None:
    """The text model's name of a tensor of a multimodal checkpoint, as transformers 4 or 5 wrote it."""
    if any(part in name for part in ("vision_tower.", "multi_modal_projector.")):
        return None
    for stored, ours in (("language_model.model.", "model."), ("model.language_model.", "model."),
                         ("language_model.lm_head.", "lm_head.")):
        if name.startswith(stored):
            return ours + name.removeprefix(stored)
    return name


def gguf_fields(lookup, raw: dict) -> dict:
    """What llama.cpp knows of the family without writing it: windows on five of six layers, and 27B's query scale."""
    pattern = lookup("attention.sliding_window_pattern", _DEFAULTS["sliding_window_pattern"])
    kinds = {} if not isinstance(pattern, list) else {
        "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in pattern]}
    large = raw["num_hidden_layers"] == 62  # the 27B model
    scalar = raw["hidden_size"] // raw["num_attention_heads"] if large else raw["head_dim"]
    return kinds | {"query_pre_attn_scalar": scalar} | ({} if kinds else {"sliding_window_pattern": pattern})


def _preset(embed_dim, num_layers, mlp_dim):
    return DecoderConfig(
        vocab_size=262144, embed_dim=embed_dim, num_layers=num_layers, num_heads=4, num_kv_heads=1, head_dim=256,
        mlp_dim=mlp_dim, rope_theta=_THETA, sliding_rope_theta=_SLIDING_THETA, rms_eps=1e-6, tie_embeddings=True,
        max_position=32768, sliding_window=512, sliding_layers=tuple(i for i in range(num_layers) if (i + 1) % 6),
        dtype="bfloat16", **_switches(embed_dim))


PRESETS = {"gemma3-270m": _preset(640, 18, 2048), "gemma3-1b": _preset(1152, 26, 6912)}
FAMILY = Family("gemma3_text", "Gemma3ForCausalLM", read, write, PRESETS, ("<end_of_turn>", "<eos>"),
                also_reads=("gemma3",), tensor_name=tensor_name, gguf_architecture="gemma3", gguf_fields=gguf_fields)
