"""What is compiled for a target is what would run there."""

import pytest

from zsjax.models.attention import choose
from zsjax.models.layers import DecoderConfig
from zsjax.plan.targets import CHIPS, read_target
from zsjax.plan.topology import gpu_description, tracing_for

GPUS = [name for name, chip in CHIPS.items() if chip.kind == "gpu"]


@pytest.mark.parametrize("target, head_dim, kernel", [
    ("a100-80gb:8", 128, "cudnn"), ("a100-80gb", 256, "xla"), ("h200", 256, "cudnn"), ("v5e:1", 128, "splash"),
    ("v5e:16", 128, "splash")])
def test_the_attention_kernel_is_the_targets(target, head_dim, kernel):
    config = DecoderConfig(vocab_size=8, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=head_dim,
                           mlp_dim=8, dtype="bfloat16")
    with tracing_for(read_target(target)):
        assert choose(config) == kernel


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_a_description(name):
    text = gpu_description(read_target(name))
    assert f"memory_bandwidth: {int(CHIPS[name].bandwidth)} " in text and text.count("{") == text.count("}") == 3
