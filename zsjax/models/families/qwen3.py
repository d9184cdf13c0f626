"""Qwen3: an RMS norm on each query and key head, no biases."""

from zsjax.models.families.family import Fields, Family, common_fields, require, window_fields
from zsjax.models.layers import DecoderConfig

_DEFAULTS = {"vocab_size": 151936, "max_position_embeddings": 32768, "head_dim": 128}


def read(raw: dict) -> DecoderConfig:
    """config.json of Qwen3."""
    fields = Fields(raw, _DEFAULTS, {"hidden_act": "silu", "attention_bias": False})
    return DecoderConfig(**fields.shape(), **fields.window(), **fields.rope(), qkv_bias=False, qk_norm=True,
                         model_type="qwen3")


def write(config: DecoderConfig) -> dict:
    """The fields of config.json."""
    require(config, qk_norm=True)
    return common_fields(config) | {"attention_bias": False} | window_fields(config)


def _preset(embed_dim, num_layers, num_heads, mlp_dim, *, tie=False):
    return DecoderConfig(
        vocab_size=151936, embed_dim=embed_dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=8,
        head_dim=128, mlp_dim=mlp_dim, rope_theta=1e6, rms_eps=1e-6, tie_embeddings=tie, qkv_bias=False, qk_norm=True,
        max_position=40960, model_type="qwen3", dtype="bfloat16")


# The models after post-training; the base ones state max_position=32768.
PRESETS = {
    "Qwen3-0.6B": _preset(1024, 28, 16, 3072, tie=True),
    "Qwen3-1.7B": _preset(2048, 28, 16, 6144, tie=True),
    "Qwen3-4B": _preset(2560, 36, 32, 9728, tie=True),
    "Qwen3-8B": _preset(4096, 36, 32, 12288),
    "Qwen3-14B": _preset(5120, 40, 40, 17408),
    "Qwen3-32B": _preset(5120, 64, 64, 25600),
}
FAMILY = Family("qwen3", "Qwen3ForCausalLM", read, write, PRESETS, ("<|im_end|>", "<|endoftext|>"),
                gguf_architecture="qwen3")
