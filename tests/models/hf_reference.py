"""Small random checkpoints written by transformers, and its logits: the reference our decoder is held against."""

import numpy as np

SHAPE = dict(vocab_size=199, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128)
GEMMA = dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=24)
# name -> (config class, its fields)
KINDS = {
    "qwen2_tied": ("Qwen2Config", dict(tie_word_embeddings=True)),
    "qwen2_untied": ("Qwen2Config", dict(tie_word_embeddings=False, rms_norm_eps=1e-5)),
    "qwen2_yarn": ("Qwen2Config", dict(rope_parameters={**YARN, "rope_theta": 1e4})),
    "qwen2_linear": ("Qwen2Config", dict(rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=3e4))),
    "qwen2_window": ("Qwen2Config", dict(use_sliding_window=True, sliding_window=24, max_window_layers=1)),
    "qwen3": ("Qwen3Config", dict(head_dim=32, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "llama": ("LlamaConfig", dict(rope_parameters={**LLAMA3, "rope_theta": 5e5}, bos_token_id=0, eos_token_id=1)),
    # Every layer but each sixth has a window by default; rows of 256 tokens are longer than it.
    "gemma3": ("Gemma3TextConfig", dict(GEMMA, num_hidden_layers=7)),
    "gemma3_scaled": ("Gemma3TextConfig", dict(GEMMA, query_pre_attn_scalar=40, rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
        sliding_attention=dict(rope_type="default", rope_theta=3e3)))),
    "gemma3_full_first": ("Gemma3TextConfig", dict(GEMMA, layer_types=[
        "full_attention", "sliding_attention", "sliding_attention"], tie_word_embeddings=False)),
    "gemma3_no_window": ("Gemma3TextConfig", dict(GEMMA, layer_types=["full_attention"] * 3)),
}


def make_reference(kind: str, *, seed: int = 0, dtype: str = "float32"):
    """A transformers model with random weights large enough that every part of it shows in the logits."""
    import torch
    import transformers

    name, fields = KINDS[kind]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**{**SHAPE, **fields})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            if "norm" in parameter_name:
                p.copy_(("Gemma" not in name) + 0.3 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (0.5 if "bias" in parameter_name else 1.5 / p.shape[-1] ** 0.5))
    return model.to(getattr(torch, dtype)).eval()


def reference_logits(model, tokens, lengths):
    """float32 [B, T, V]; rows right-padded to T."""
    import torch

    mask = (np.arange(tokens.shape[1]) < np.asarray(lengths)[:, None]).astype(np.int64)
    with torch.no_grad():
        return model(torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits.float().numpy()


def padded_batch(rows: int, size: int, vocab_size: int, *, seed: int = 0):
    """Random right-padded tokens int32[rows, size] and lengths, the first row full."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, size + 1, rows)
    lengths[0] = size
    tokens = rng.integers(0, vocab_size, (rows, size)) * (np.arange(size) < lengths[:, None])
    return tokens.astype(np.int32), lengths.astype(np.int32)
