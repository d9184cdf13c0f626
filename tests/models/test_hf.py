"""Configs of both transformers generations; damage is named by file and tensor; saving is all or nothing."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zsjax.models import DecoderConfig, RopeScaling, init_params, load_hf, num_params, read_config, save_hf
from zsjax.models.families import PRESETS

CONFIG = DecoderConfig(vocab_size=40, embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)
QWEN2 = dict(model_type="qwen2", vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
             num_key_value_heads=1, intermediate_size=24, rms_norm_eps=1e-5, max_position_embeddings=128)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@pytest.fixture
def folder(params, tmp_path):
    return save_hf(tmp_path / "model", CONFIG, params, shard_bytes=5000)


def _read(tmp_path, **fields):
    (tmp_path / "config.json").write_text(json.dumps({**QWEN2, **fields}))
    return read_config(tmp_path)


def _edit_header(file, edit):
    """Rewrites a safetensors file's header; the bytes of the tensors stay."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + size])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size:])


# ------------------------------------------------------------------------------------------------------ config.json

def test_both_generations_of_rope_fields_mean_the_same(tmp_path):
    scaling = dict(factor=4.0, original_max_position_embeddings=32)
    old = _read(tmp_path, rope_theta=1e6, rope_scaling=dict(type="yarn", **scaling))
    new = _read(tmp_path, rope_parameters=dict(rope_type="yarn", rope_theta=1e6, **scaling))
    assert old == new
    assert old.rope_theta == 1e6 and old.rope_scaling == RopeScaling("yarn", 4.0, 32)
    assert _read(tmp_path).rope_scaling is None and _read(tmp_path).rope_theta == 10000.0
    # DeepSeek's mscale becomes the factor that transformers computes from it
    factor = _read(tmp_path, rope_scaling=dict(type="yarn", mscale=0.707, mscale_all_dim=1.0, **scaling)).rope_scaling
    assert factor.attention_factor == pytest.approx((0.0707 * np.log(4) + 1) / (0.1 * np.log(4) + 1))


def test_windows_as_transformers_applies_them(tmp_path):
    window = dict(sliding_window=8, max_window_layers=2)
    assert _read(tmp_path, **window).sliding_layers == ()  # published Qwen2.5: a window that is switched off
    on = _read(tmp_path, use_sliding_window=True, **window)
    assert (on.sliding_window, on.sliding_layers) == (8, (2, 3))
    absent = _read(tmp_path, use_sliding_window=True, max_window_layers=None)
    assert absent.sliding_layers == () and absent.sliding_window is None  # 28 layers without a window, of which it has 4
    absent = _read(tmp_path, use_sliding_window=True, max_window_layers=3)
    assert (absent.sliding_window, absent.sliding_layers) == (4096, (3,))
    types = ["sliding_attention", "full_attention"] * 2
    assert _read(tmp_path, use_sliding_window=True, layer_types=types, **window).sliding_layers == (0, 2)
    llama = _read(tmp_path, model_type="llama", use_sliding_window=True, **window)
    assert llama.sliding_layers == () and llama.sliding_window is None


@pytest.mark.parametrize("fields, words", [
    (dict(model_type="qwen2_moe"), "model_type='qwen2_moe'"),
    (dict(model_type="qwen2_vl"), "model_type='qwen2_vl'"),
    (dict(num_experts=8), "num_experts=8"),
    (dict(vision_config={"depth": 2}), "vision_config"),
    (dict(rope_scaling=dict(rope_type="longrope", factor=2.0)), "rope_scaling.rope_type='longrope'"),
    (dict(rope_parameters=dict(rope_type="dynamic", factor=2.0)), "rope_parameters.rope_type='dynamic'"),
    (dict(rope_scaling=dict(rope_type="llama3", factor=2.0)), "rope_scaling.low_freq_factor is missing"),
    (dict(rope_parameters=dict(full_attention=dict(rope_theta=1e4))), "one entry a layer type"),
    (dict(hidden_act="gelu"), "hidden_act='gelu'"),
    (dict(model_type="llama", attention_bias=True), "attention_bias"),
    (dict(model_type="llama", mlp_bias=True), "mlp_bias"),
    (dict(quantization_config={"quant_method": "awq"}), "quantization_config"),
    (dict(layer_types=["chunked_attention"] * 4), "layer_types"),
    (dict(layer_types=["sliding_attention"] * 4), "use_sliding_window"),
    (dict(num_attention_heads=3), "num_attention_heads=3"),
    (dict(intermediate_size=None), "intermediate_size is missing"),
    (dict(torch_dtype="float8_e4m3fn"), "dtype='float8_e4m3fn'"),
])
def test_what_is_not_implemented_is_named(fields, words, tmp_path):
    with pytest.raises(ValueError) as e:
        _read(tmp_path, **fields)
    assert words in str(e.value) and str(tmp_path / "config.json") in str(e.value)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_saving_and_count_their_parameters(name, tmp_path):
    from zsjax.models.families import config_dict

    config = PRESETS[name]
    (tmp_path / "config.json").write_text(json.dumps(config_dict(config, dtype="bfloat16")))
    assert read_config(tmp_path) == config
    published = {  # elements of the published safetensors, a tied head counted once
        "Qwen2.5-0.5B": 494_032_768, "Qwen2.5-1.5B": 1_543_714_304, "Qwen2.5-3B": 3_085_938_688,
        "Qwen2.5-7B": 7_615_616_512, "Qwen2.5-14B": 14_770_033_664, "Qwen2.5-32B": 32_763_876_352,
        "Qwen2.5-72B": 72_706_203_648, "Qwen3-0.6B": 596_049_920, "Qwen3-1.7B": 1_720_574_976,
        "Qwen3-4B": 4_022_468_096, "Qwen3-8B": 8_190_735_360, "Qwen3-14B": 14_768_307_200,
        "Qwen3-32B": 32_762_123_264, "Llama-3.1-8B": 8_030_261_248, "Llama-3.1-70B": 70_553_706_496,
        "Llama-3.1-405B": 405_853_388_800,
        "Llama-3.2-1B": 1_235_814_400, "Llama-3.2-3B": 3_212_749_824,
        "gemma3-270m": 268_098_176, "gemma3-1b": 999_885_952}
    assert num_params(config) == published[name]
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == published[name]


# ------------------------------------------------------------------------------------------------- bad checkpoints

def _shard_of(folder, name):
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]


NORM = "model.layers.1.input_layernorm.weight"


def _missing_shard(folder):
    _shard_of(folder, NORM).unlink()
    return FileNotFoundError, [_shard_of(folder, NORM).name, "shard is missing"]


def _truncated(folder):
    file = _shard_of(folder, NORM)
    file.write_bytes(file.read_bytes()[:-3])
    return ValueError, [file.name, "cut short", "model.layers"]


def _not_safetensors(folder):
    file = _shard_of(folder, NORM)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    return ValueError, [file.name, "not a safetensors file"]


def _wrong_shape(folder):
    file = _shard_of(folder, NORM)
    _edit_header(file, lambda header: header[NORM].update(shape=[2, 8]))
    return ValueError, [file.name, NORM, "(2, 8)", "(16,)"]


def _wrong_dtype(folder):
    file = _shard_of(folder, NORM)
    _edit_header(file, lambda header: header[NORM].update(dtype="I32"))
    return ValueError, [file.name, NORM, "I32"]


def _unknown_dtype(folder):
    file = _shard_of(folder, NORM)
    _edit_header(file, lambda header: header[NORM].update(dtype="F8_E4M3", shape=[64]))
    return ValueError, [file.name, NORM, "F8_E4M3"]


def _missing_tensor(folder):
    file = _shard_of(folder, NORM)
    save_file({name: x for name, x in load_file(file).items() if name != NORM}, file, {"format": "pt"})
    return ValueError, [file.name, NORM, "missing"]


def _hole(folder):
    file = _shard_of(folder, NORM)
    _edit_header(file, lambda header: header.pop(NORM))
    return ValueError, [file.name, "not a safetensors file, or damaged"]


def _surplus_tensor(folder):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 1, "layer_types": None}))
    return ValueError, ["model.layers.1.", "surplus"]


def _missing_layer(folder):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 3, "layer_types": None}))
    return ValueError, [str(folder), "model.layers.2.", "missing"]


def _pickle(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    return ValueError, ["pytorch_model.bin", "save_pretrained"]


def _no_weights(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    return FileNotFoundError, [str(folder), "model.safetensors"]


def _no_folder(folder):
    shutil.rmtree(folder)
    return FileNotFoundError, [str(folder / "config.json")]


@pytest.mark.parametrize("damage", [_missing_shard, _truncated, _not_safetensors, _wrong_shape, _wrong_dtype,
                                    _unknown_dtype, _missing_tensor, _hole, _surplus_tensor, _missing_layer, _pickle,
                                    _no_weights, _no_folder])
def test_damage_is_named(damage, folder):
    error, words = damage(folder)
    with pytest.raises(error) as e:
        load_hf(folder)
    for word in words:
        assert word in str(e.value)


def test_values_that_are_not_finite_are_found_if_asked_for(folder):
    file = _shard_of(folder, NORM)
    tensors = {name: x.copy() for name, x in load_file(file).items()}
    tensors[NORM][3] = np.nan
    save_file(tensors, file, {"format": "pt"})
    load_hf(folder)
    with pytest.raises(ValueError, match=f"{file.name}: tensor '{NORM}' holds NaN"):
        load_hf(folder, check_finite=True)
    tensors[NORM][3] = 1e6
    save_file(tensors, file, {"format": "pt"})
    load_hf(folder, check_finite=True)
    with pytest.raises(ValueError, match="float16"):  # what the run would compute with is what is looked at
        load_hf(folder, check_finite=True, dtype="float16")


def test_a_tokenizer_must_fit_the_embedding(folder):
    class Tokenizer:
        path, vocab_size = "big/tokenizer.json", 40

    load_hf(folder, tokenizer=Tokenizer)
    Tokenizer.vocab_size = 41
    with pytest.raises(ValueError, match="'model.embed_tokens.weight' has 40 rows.*big/tokenizer.json has 41 ids"):
        load_hf(folder, tokenizer=Tokenizer)


def test_each_device_reads_its_own_part(folder, params, monkeypatch):
    from zsjax.models.checkpoints import tensor_files
    from zsjax.parallel.mesh import make_mesh

    seen, read = [], tensor_files.StoredTensor.read

    def watch(self, index=...):
        part = read(self, index)
        seen.append((self.name, part.size))
        return part

    monkeypatch.setattr(tensor_files.StoredTensor, "read", watch)
    _, loaded = load_hf(folder, mesh=make_mesh({"fsdp": 8}))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    name = "model.layers.0.self_attn.o_proj.weight"  # "embed" is its first axis in the file, the second in our tree
    assert [size for n, size in seen if n == name] == [16 * 16 // 8] * 8
    assert loaded["layers"][0]["attn"]["o_proj"]["kernel"].addressable_shards[0].data.shape == (16, 2)


def test_a_tied_head_may_be_stored_twice_if_equal(folder, params, tmp_path):
    untied = save_hf(tmp_path / "untied", DecoderConfig(**{**CONFIG.__dict__, "tie_embeddings": False}),
                     {**params, "lm_head": {"kernel": params["embed_tokens"].T}})
    shutil.copy(folder / "config.json", untied / "config.json")
    config, loaded = load_hf(untied)
    assert config.tie_embeddings and "lm_head" not in loaded
    save_hf(untied, DecoderConfig(**{**CONFIG.__dict__, "tie_embeddings": False}),
            {**params, "lm_head": {"kernel": params["embed_tokens"].T + 1}})
    shutil.copy(folder / "config.json", untied / "config.json")
    with pytest.raises(ValueError, match="lm_head.weight.*differs"):
        load_hf(untied)


def test_loaded_parameters_do_not_hold_on_to_the_file(folder, params):
    _, loaded = load_hf(folder)
    for file in folder.glob("*.safetensors"):
        with open(file, "r+b") as f:  # overwritten in place, as a careless copy does
            f.write(b"\xff" * file.stat().st_size)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


# ---------------------------------------------------------------------------------------------------------- saving

def test_a_failed_save_leaves_the_old_checkpoint(folder, params, monkeypatch):
    from zsjax.models.checkpoints import tensor_files

    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(tensor_files, "write_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_hf(folder, CONFIG, jax.tree.map(lambda x: x + 1, params))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing half-written beside it


def test_saving_replaces_a_checkpoint_but_nothing_else(folder, params, tmp_path):
    save_hf(folder, CONFIG, params)
    assert not (folder / "model.safetensors.index.json").exists()  # shards of the old one are gone
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder)[1], params)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("irreplaceable")
    with pytest.raises(FileExistsError):
        save_hf(tmp_path / "thesis", CONFIG, params)
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_tokenizer_files_and_end_tokens_travel(params, tmp_path):
    class Tokenizer:
        path, eos_ids, pad_id = tmp_path / "tokenizer", (3, 4), 1

    Tokenizer.path.mkdir()
    (Tokenizer.path / "tokenizer.json").write_text("{}")
    (Tokenizer.path / "notes.txt").write_text("not a tokenizer file")
    save_hf(tmp_path / "model", CONFIG, params, tokenizer=Tokenizer())
    assert (tmp_path / "model" / "tokenizer.json").is_file() and not (tmp_path / "model" / "notes.txt").exists()
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "model" / file).read_text())["eos_token_id"] == [3, 4]


def test_what_transformers_cannot_run_is_not_saved(params, tmp_path):
    for fields, words in ((dict(model_type="llama"), "qkv_bias"), (dict(qk_norm=True), "qk_norm")):
        config = DecoderConfig(**{**CONFIG.__dict__, **fields})
        with pytest.raises(ValueError, match=words):
            save_hf(tmp_path / "model", config, init_params(config, jax.random.key(0)))
    with pytest.raises(ValueError, match="do not fit"):
        save_hf(tmp_path / "model", CONFIG, {"embed_tokens": params["embed_tokens"]})
    assert not (tmp_path / "model").exists()
