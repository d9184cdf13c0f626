"""Operations and bytes that reading and writing tokens cannot do without: what every measured time is held against.

Products count two operations a multiplication, attention the pairs that a causal mask leaves. Bytes are the weights, once a
pass over the model, and the live part of the cache. Sampling, norms and copies are not counted.
"""

import dataclasses

from zsjax.models.decoder import num_params
from zsjax.models.flops import forward_flops


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOP and bytes; works add up and multiply."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other):
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, count):
        return Work(self.flops * count, self.bytes * count)

    def floor(self, flops: float, bandwidth: float) -> float:
        """The least seconds, the two overlapping."""
        return max(self.flops / flops, self.bytes / bandwidth)

    def in_turn(self, flops: float, bandwidth: float) -> float:
        """Seconds where the two do not overlap, as on one thread."""
        return self.flops / flops + self.bytes / bandwidth


def item_bytes(config) -> int:
    return {"float32": 4, "bfloat16": 2}[config.dtype]


def weights_bytes(config) -> int:
    """Of one pass: all matrices and the unembedding."""
    untied = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
    return (num_params(config) - untied) * item_bytes(config)


def cache_token_bytes(config) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * item_bytes(config)


def reading(config, rows: int, tokens: int, before: int = 0) -> Work:
    """`tokens` more of each row in one pass, behind `before` others; logits of the last."""
    pairs = rows * (tokens * before + tokens * (tokens + 1) / 2)
    return Work(forward_flops(config, rows * tokens, pairs, rows),
                weights_bytes(config) + rows * (before + tokens) * cache_token_bytes(config))


def writing(config, rows: int, tokens: int, before: int) -> Work:
    """`tokens` of each row, one pass each, behind `before` others."""
    seen = rows * sum(before + i + 1 for i in range(tokens))
    return Work(forward_flops(config, rows * tokens, seen, rows * tokens),
                weights_bytes(config) * tokens + seen * cache_token_bytes(config))


def rollout(config, w: dict, shared: int) -> Work:
    """The fixed-length rollout of benchmarks/rollout.py; `shared` tokens of the simulator's prompt are read once.

    Nobody reads the last documents; they are written.
    """
    rows, turn, documents, own = w["batch"], w["turn_tokens"], w["document_tokens"], w["simulator_prompt"] - shared
    work = reading(config, rows, w["prompt"]) + reading(config, 1, shared)
    length = w["prompt"]
    for number in range(w["turns"]):
        work += writing(config, rows, turn, length) + reading(config, rows, own, shared)
        work += writing(config, rows, documents, shared + own)
        if number + 1 < w["turns"]:
            work += reading(config, rows, documents, length + turn)
        length += turn + documents
    return work
