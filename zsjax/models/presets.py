"""Shapes of published models, as their config.json states them. `DecoderConfig.from_hf` reads any other."""

from zsjax.models.layers import DecoderConfig, RopeScaling


def _qwen2(embed_dim, num_layers, num_heads, num_kv_heads, mlp_dim, *, vocab_size=152064, tie=False, eps=1e-6,
           max_position=131072):
    return DecoderConfig(
        vocab_size=vocab_size, embed_dim=embed_dim, num_layers=num_layers, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=embed_dim // num_heads, mlp_dim=mlp_dim, rope_theta=1e6, rms_eps=eps,
        tie_embeddings=tie, qkv_bias=True, max_position=max_position, model_type="qwen2", dtype="bfloat16")


def _qwen3(embed_dim, num_layers, num_heads, mlp_dim, *, tie=False):
    return DecoderConfig(
        vocab_size=151936, embed_dim=embed_dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=8,
        head_dim=128, mlp_dim=mlp_dim, rope_theta=1e6, rms_eps=1e-6, tie_embeddings=tie, qkv_bias=False, qk_norm=True,
        max_position=40960, model_type="qwen3", dtype="bfloat16")


def _llama3(embed_dim, num_layers, num_heads, mlp_dim, *, factor, tie=False):
    scaling = RopeScaling("llama3", factor, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    return DecoderConfig(
        vocab_size=128256, embed_dim=embed_dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=8,
        head_dim=embed_dim // num_heads, mlp_dim=mlp_dim, rope_theta=5e5, rope_scaling=scaling, rms_eps=1e-5,
        tie_embeddings=tie, qkv_bias=False, max_position=131072, model_type="llama", dtype="bfloat16")


PRESETS: dict[str, DecoderConfig] = {
    # Base models. The instruct ones have the same weights' shapes but state another max_position and, the larger ones,
    # rms_eps: read their config.json.
    "Qwen2.5-0.5B": _qwen2(896, 24, 14, 2, 4864, vocab_size=151936, tie=True, max_position=32768),
    "Qwen2.5-1.5B": _qwen2(1536, 28, 12, 2, 8960, vocab_size=151936, tie=True),
    "Qwen2.5-3B": _qwen2(2048, 36, 16, 2, 11008, vocab_size=151936, tie=True, max_position=32768),
    "Qwen2.5-7B": _qwen2(3584, 28, 28, 4, 18944),
    "Qwen2.5-14B": _qwen2(5120, 48, 40, 8, 13824, eps=1e-5),
    "Qwen2.5-32B": _qwen2(5120, 64, 40, 8, 27648, eps=1e-5),
    "Qwen2.5-72B": _qwen2(8192, 80, 64, 8, 29568, eps=1e-5),
    # The models after post-training; the base ones state max_position=32768.
    "Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, tie=True),
    "Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tie=True),
    "Qwen3-4B": _qwen3(2560, 36, 32, 9728, tie=True),
    "Qwen3-8B": _qwen3(4096, 36, 32, 12288),
    "Qwen3-14B": _qwen3(5120, 40, 40, 17408),
    "Qwen3-32B": _qwen3(5120, 64, 64, 25600),
    "Llama-3.1-8B": _llama3(4096, 32, 32, 14336, factor=8.0),
    "Llama-3.1-70B": _llama3(8192, 80, 64, 28672, factor=8.0),
    "Llama-3.1-405B": _llama3(16384, 126, 128, 53248, factor=8.0),
    "Llama-3.2-1B": _llama3(2048, 16, 32, 8192, factor=32.0, tie=True),
    "Llama-3.2-3B": _llama3(3072, 28, 24, 8192, factor=32.0, tie=True),
}
