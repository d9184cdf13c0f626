"""Qwen2 and Qwen2.5: biases on q, k and v."""

from zsjax.models.families.family import Fields, Family, common_fields, require, window_fields
from zsjax.models.layers import DecoderConfig

_DEFAULTS = {"vocab_size": 151936, "max_position_embeddings": 32768}


def read(raw: dict) -> DecoderConfig:
    """config.json of Qwen2."""
    fields = Fields(raw, _DEFAULTS, {"hidden_act": "silu"})
    return DecoderConfig(**fields.shape(), **fields.window(), **fields.rope(), qkv_bias=True, model_type="qwen2")


def write(config: DecoderConfig) -> dict:
    """The fields of config.json."""
    require(config, qkv_bias=True)
    return common_fields(config) | window_fields(config)


def _preset(embed_dim, num_layers, num_heads, num_kv_heads, mlp_dim, **fields):
    defaults = dict(vocab_size=152064, tie_embeddings=False, rms_eps=1e-6, max_position=131072)
    return DecoderConfig(
        embed_dim=embed_dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=num_kv_heads,
        head_dim=embed_dim // num_heads, mlp_dim=mlp_dim, rope_theta=1e6, qkv_bias=True, model_type="qwen2",
        dtype="bfloat16", **(defaults | fields))


_SMALL = dict(vocab_size=151936, tie_embeddings=True)
# Base models. The instruct ones have the same weights' shapes but state another max_position and, the larger ones,
# rms_eps: read their config.json.
PRESETS = {
    "Qwen2.5-0.5B": _preset(896, 24, 14, 2, 4864, max_position=32768, **_SMALL),
    "Qwen2.5-1.5B": _preset(1536, 28, 12, 2, 8960, **_SMALL),
    "Qwen2.5-3B": _preset(2048, 36, 16, 2, 11008, max_position=32768, **_SMALL),
    "Qwen2.5-7B": _preset(3584, 28, 28, 4, 18944),
    "Qwen2.5-14B": _preset(5120, 48, 40, 8, 13824, rms_eps=1e-5),
    "Qwen2.5-32B": _preset(5120, 64, 40, 8, 27648, rms_eps=1e-5),
    "Qwen2.5-72B": _preset(8192, 80, 64, 8, 29568, rms_eps=1e-5),
}
FAMILY = Family("qwen2", "Qwen2ForCausalLM", read, write, PRESETS, ("<|im_end|>", "<|endoftext|>"),
                gguf_architecture="qwen2")
