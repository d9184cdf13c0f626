"""A model family added from outside the package: one Family, registered, and everything that takes checkpoints knows it."""

import json

import jax
import numpy as np
import pytest

from zsjax.models import families, forward, init_params, load_hf, read_config, save_hf
from zsjax.models.families.family import Family, Fields, common_fields, require
from zsjax.models.layers import DecoderConfig

SWITCHES = dict(qkv_bias=False, activation="gelu_tanh", norm_offset=1.0, embed_scale=2.0)


def read(raw):
    """A decoder with GELU, offset norms and a scaled embedding, whose config calls its layers n_layer."""
    fields = Fields(raw | {"num_hidden_layers": raw.get("n_layer")}, {"max_position_embeddings": 64}, {})
    return DecoderConfig(**fields.shape(), **fields.rope(), **SWITCHES, model_type="mine")


def write(config):
    require(config, **SWITCHES)
    fields = common_fields(config)
    return fields | {"n_layer": fields.pop("num_hidden_layers")}


SHAPE = DecoderConfig(vocab_size=40, embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24,
                      max_position=64, model_type="mine", **SWITCHES)
MINE = Family("mine", "MineForCausalLM", read, write, presets={"Mine-1M": SHAPE}, also_reads=("mine_old",),
              tensor_name=lambda name: None if name.startswith("extra.") else name)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    monkeypatch.setattr(families, "PRESETS", dict(families.PRESETS))
    families.register(MINE)


def test_it_is_saved_and_loaded(tmp_path):
    params = init_params(SHAPE, jax.random.key(0))
    save_hf(tmp_path / "model", SHAPE, params)
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (fields["model_type"], fields["n_layer"], fields["architectures"]) == ("mine", 2, ["MineForCausalLM"])
    config, loaded = load_hf(tmp_path / "model")
    assert config == SHAPE
    jax.tree.map(np.testing.assert_array_equal, params, loaded)
    assert forward(loaded, config, np.ones((1, 3), np.int32)).shape == (1, 3, 40)


def test_its_other_names_tensors_and_presets(tmp_path):
    from safetensors.numpy import load_file, save_file

    save_hf(tmp_path / "model", SHAPE, init_params(SHAPE, jax.random.key(0)))
    file = tmp_path / "model" / "model.safetensors"
    save_file(load_file(file) | {"extra.eye": np.ones(3, np.float32)}, file, {"format": "pt"})
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(fields | {"model_type": "mine_old"}))
    assert load_hf(tmp_path / "model")[0] == read_config(tmp_path / "model") == SHAPE
    assert families.find_preset("someone/Mine-1M-it") == SHAPE


def test_what_it_does_not_compute_is_not_saved(tmp_path):
    import dataclasses

    config = dataclasses.replace(SHAPE, qk_norm=True)
    with pytest.raises(ValueError, match="model_type='mine' with qk_norm=True"):
        save_hf(tmp_path / "model", config, init_params(config, jax.random.key(0)))
