"""Llama 2 and 3: no biases, no norms of heads, and no window whatever a config says."""

from zsjax.models.families.family import Fields, Family, common_fields, require, require_whole_heads
from zsjax.models.layers import DecoderConfig, RopeScaling

_DEFAULTS = {"vocab_size": 32000, "max_position_embeddings": 2048}


def read(raw: dict) -> DecoderConfig:
    """config.json of Llama."""
    fields = Fields(raw, _DEFAULTS, {"hidden_act": "silu", "attention_bias": False})
    if "sliding_attention" in (fields.layer_types() or ()):
        raise ValueError("layer_types asks for sliding_attention, but model_type='llama' has no window")
    return DecoderConfig(**fields.shape(), **fields.rope(), qkv_bias=False, model_type="llama")


def write(config: DecoderConfig) -> dict:
    """The fields of config.json."""
    require(config)
    if config.sliding_layers:
        raise ValueError("sliding_layers cannot be saved for model_type='llama': transformers' Llama has no window")
    require_whole_heads(config)
    return common_fields(config) | {"attention_bias": False, "mlp_bias": False}


def _preset(embed_dim, num_layers, num_heads, mlp_dim, *, factor, tie=False):
    scaling = RopeScaling("llama3", factor, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    return DecoderConfig(
        vocab_size=128256, embed_dim=embed_dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=8,
        head_dim=embed_dim // num_heads, mlp_dim=mlp_dim, rope_theta=5e5, rope_scaling=scaling, rms_eps=1e-5,
        tie_embeddings=tie, qkv_bias=False, max_position=131072, model_type="llama", dtype="bfloat16")


PRESETS = {
    "Llama-3.1-8B": _preset(4096, 32, 32, 14336, factor=8.0),
    "Llama-3.1-70B": _preset(8192, 80, 64, 28672, factor=8.0),
    "Llama-3.1-405B": _preset(16384, 126, 128, 53248, factor=8.0),
    "Llama-3.2-1B": _preset(2048, 16, 32, 8192, factor=32.0, tie=True),
    "Llama-3.2-3B": _preset(3072, 28, 24, 8192, factor=32.0, tie=True),
}
FAMILY = Family("llama", "LlamaForCausalLM", read, write, PRESETS, ("<|eot_id|>", "<|end_of_text|>", "</s>"),
                gguf_architecture="llama", gguf_interleaved=True)
