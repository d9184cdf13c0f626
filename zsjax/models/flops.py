"""Floating-point operations of a forward pass, from the model's shape alone."""

from zsjax.models.decoder import DecoderConfig, num_params


def forward_flops(model: DecoderConfig, tokens: float, pairs: float, logits: float) -> float:
    """FLOPs of a forward pass; a product counts two a multiplication.

    Args:
      tokens: tokens that pass through the layers.
      pairs: visible (query, key) pairs, over all rows.
      logits: rows of logits that are computed.
    """
    embedding = model.vocab_size * model.embed_dim
    matrices = num_params(model) - embedding * (1 if model.tie_embeddings else 2)
    attention = 4 * model.num_layers * model.num_heads * model.head_dim * pairs
    return 2 * matrices * tokens + attention + 2 * embedding * logits
