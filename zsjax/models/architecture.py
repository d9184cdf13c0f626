"""The shape of a decoder: what `zsjax.models.families` reads from a checkpoint and `zsjax.models.decoder` computes."""

import dataclasses
import functools
from typing import Literal

import jax

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched, in Hugging Face's terms.

    Attributes:
      kind: "linear" (positions divided by factor), "llama3" (low frequencies divided, high kept, smooth between) or
        "yarn" (arXiv 2309.00071; ramp between interpolation and extrapolation, and an attention factor).
      factor: the stretch.
      original_max_position: context the model was trained with (llama3, yarn).
      low_freq_factor, high_freq_factor: llama3's band, in wavelengths per original context.
      beta_fast, beta_slow: yarn's ramp, in rotations per original context.
      attention_factor: multiplies cos and sin; None is yarn's 0.1 ln(factor) + 1.
      truncate: whether yarn's ramp is rounded to whole dimensions.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder, as switches that do not depend on each other. Hashable: a static argument of jitted functions.

    `zsjax.models.families` says which values a family of published models has.

    Attributes:
      vocab_size: V, rows of the embedding.
      embed_dim: D.
      num_layers: L.
      num_heads, num_kv_heads: H and K; K divides H.
      head_dim: h; H * h need not be D.
      mlp_dim: F.
      rope_theta: base of the rotary frequencies.
      rope_scaling: None, or how frequencies are stretched.
      sliding_rope_theta: None, or the base of the layers in `sliding_layers`, whose frequencies are then stretched by
        `sliding_rope_scaling`, not by `rope_scaling`.
      rms_eps: epsilon of every RMS norm.
      tie_embeddings: whether the unembedding is the embedding.
      qkv_bias: biases on q, k and v (Qwen2).
      qk_norm: RMS norm of each q and k head (Qwen3).
      norm_offset: added to the weight of every RMS norm, in float32 (Gemma: 1).
      post_norms: RMS norms also of what attention and mlp add to the residual stream (Gemma 3). `post_attention_layernorm`
        is then attention's; the mlp's are `pre_feedforward_layernorm` and `post_feedforward_layernorm`.
      activation: of the mlp's gate: "silu" or "gelu_tanh".
      embed_scale: multiplies the embedding, rounded to `dtype` first (Gemma: D^1/2).
      query_scale: multiplies the attention scores; None is h^-1/2.
      max_position: the longest context the model claims, in tokens.
      sliding_window: None, or the window of the layers in `sliding_layers`, in tokens (the token itself counts).
      sliding_layers: which layers use the window.
      model_type: "qwen2", "qwen3", "llama", "gemma3_text" or a registered family's: what `save_hf` writes.
      dtype: name of the dtype activations are computed in; norms, softmax and logits are always float32.
      attention: "auto", or the kernel to insist on; see `zsjax.models.attention`.
      num_ids: None, or how many rows of the embedding the tokenizer has ids for; the rows behind them are padding, whose
        logits are `zsjax.types.PADDING_LOGIT`, in sampling and in scoring alike.
    """

    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    sliding_rope_theta: float | None = None
    sliding_rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-6
    tie_embeddings: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    norm_offset: float = 0.0
    post_norms: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embed_scale: float = 1.0
    query_scale: float | None = None
    max_position: int = 32768
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    model_type: str = "qwen2"
    dtype: str = "float32"
    attention: str = "auto"
    num_ids: int | None = None

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embedding turns pairs")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown; use {' or '.join(ACTIVATIONS)}")
        if self.post_norms and self.dtype == "float16":
            raise ValueError("dtype='float16' overflows in a decoder with post_norms, such as Gemma 3; use 'bfloat16' or "
                             "'float32'")
        if self.sliding_layers and not self.sliding_window:
            raise ValueError(f"sliding_layers={self.sliding_layers} need sliding_window, in tokens")
        object.__setattr__(self, "sliding_layers", tuple(self.sliding_layers))  # a config's JSON gives lists

    def for_tokenizer(self, tokenizer) -> "DecoderConfig":
        """The config with `num_ids` of a tokenizer. Raises ValueError where it uses more ids than the embedding has rows."""
        if getattr(tokenizer, "ids_in_use", tokenizer.vocab_size) > self.vocab_size:
            raise ValueError(f"the tokenizer {getattr(tokenizer, 'path', '')} has {tokenizer.vocab_size} ids, the model's "
                             f"embedding only {self.vocab_size} rows: give the model's own tokenizer")
        padded = tokenizer.vocab_size < self.vocab_size
        return dataclasses.replace(self, num_ids=tokenizer.vocab_size if padded else None)
