"""Logits equal transformers' on random checkpoints; checkpoints survive the way there and back bit for bit."""

import json

import jax
import numpy as np
import pytest
from hf_reference import KINDS, make_reference, padded_batch, reference_logits

from zsjax.models import forward, load_hf, save_hf

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_transformers(kind, tmp_path):
    model = make_reference(kind)
    model.save_pretrained(tmp_path / "theirs")
    config, params = load_hf(tmp_path / "theirs")
    tokens, lengths = padded_batch(4, 256, config.vocab_size)
    valid = np.arange(tokens.shape[1]) < lengths[:, None]
    theirs = reference_logits(model, tokens, lengths)
    ours = np.asarray(jax.jit(forward, static_argnums=1)(params, config, tokens, valid=valid))
    assert ours.dtype == np.float32
    assert theirs[valid].std() > 0.5  # a comparison of near-zeros would show nothing
    assert np.abs(ours - theirs)[valid].max() <= 1e-4

    save_hf(tmp_path / "ours", config, params)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    again = reference_logits(loaded, tokens, lengths)
    np.testing.assert_array_equal(again[valid], theirs[valid])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_bit_exact(dtype, tmp_path):
    from safetensors import safe_open

    model = make_reference("qwen2_untied", dtype=dtype)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")  # an index and shards
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    config, params = load_hf(tmp_path / "theirs")
    assert config.dtype == dtype
    save_hf(tmp_path / "ours", config, params, shard_bytes=50_000)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    state = model.state_dict()
    assert set(index["weight_map"]) == set(state)
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():  # read by the reference implementation of the format
        with safe_open(tmp_path / "ours" / file, "pt") as f:
            theirs, ours = state[name], f.get_tensor(name)
            assert ours.dtype == theirs.dtype and (ours == theirs).all(), name


def test_dtype_is_cast_for_parameters_and_activations(tmp_path):
    make_reference("qwen2_tied", dtype="bfloat16").save_pretrained(tmp_path)
    config, params = load_hf(tmp_path, dtype="float32")
    assert config.dtype == "float32"
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}


@pytest.mark.parametrize("kind", ["qwen2_untied", "qwen3", "llama", "gemma3"])
def test_bfloat16_is_as_near_to_float32_as_theirs(kind, tmp_path):
    """KL to transformers' float32 logits and flips of the argmax, against those of transformers' own bfloat16."""
    model = make_reference(kind, dtype="bfloat16")
    model.save_pretrained(tmp_path)
    tokens, lengths = padded_batch(8, 256, 199)
    valid = np.arange(256) < lengths[:, None]
    theirs = reference_logits(model, tokens, lengths)[valid]
    exact = reference_logits(model.float(), tokens, lengths)[valid]
    config, params = load_hf(tmp_path)
    assert config.dtype == "bfloat16"
    ours = np.asarray(jax.jit(forward, static_argnums=1)(params, config, tokens, valid=valid))[valid]

    def distance(logits):
        p, q = (np.asarray(jax.nn.log_softmax(x)) for x in (exact, logits))
        return (np.exp(p) * (p - q)).sum(-1).mean(), (p.argmax(-1) != q.argmax(-1)).mean()

    (our_kl, our_flips), (their_kl, their_flips) = distance(ours), distance(theirs)
    assert len(exact) > 700 and their_flips > 0.01  # enough to count
    assert 0 < our_kl <= 1.25 * their_kl and our_flips <= 1.25 * their_flips
