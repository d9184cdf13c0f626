"""Checkpoints whose files do not agree, or that are not where they were looked for."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.config import ModelConfig
from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.models import DecoderConfig, init_params, load_hf, save_hf
from zsjax.models.checkpoints import tensor_files
from zsjax.models.decoder import forward
from zsjax.rl.logprobs import token_logprobs
from zsjax.rl.steps import make_score
from zsjax.run import build
from zsjax.sampling import generate

UNTIED = DecoderConfig(vocab_size=24, embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24,
                       tie_embeddings=False)
PARAMS = init_params(UNTIED, jax.random.key(0))
REAL = "asset:real/tokenizer"


@pytest.fixture
def folder(tmp_path):
    return save_hf(tmp_path / "model", UNTIED, PARAMS)


def rewrite(folder, change):
    """Changes the names and arrays of a folder's weights."""
    file = folder / "model.safetensors"
    tensor_files.write_file(file, change({name: stored.read() for name, stored in tensor_files.read_header(file).items()}))


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def bare(tensors):
    return {name.removeprefix("model."): array for name, array in tensors.items()}


def without_head(tensors):
    return {name: array for name, array in tensors.items() if name != "lm_head.weight"}


def test_names_without_model_in_front(folder):
    rewrite(folder, bare)
    assert all(map(np.array_equal, jax.tree.leaves(load_hf(folder)[1]), jax.tree.leaves(PARAMS)))


@pytest.mark.parametrize("inside", ["_orig_mod.", "module.", "base_model.model.", "language_model.", "model."])
def test_names_that_wrappers_give(folder, inside):
    rewrite(folder, lambda tensors: {inside + name: array for name, array in tensors.items()})
    assert all(map(np.array_equal, jax.tree.leaves(load_hf(folder)[1]), jax.tree.leaves(PARAMS)))
    rewrite(folder, lambda tensors: {name.replace("lm_head", "visual"): array for name, array in tensors.items()})
    with pytest.raises(ValueError, match="'lm_head.weight' .* is missing"):
        load_hf(folder)


def test_a_decoder_beside_its_head_inside_a_larger_model(folder):
    rewrite(folder, lambda tensors: {name.replace("model.", "model.language_model."): x for name, x in tensors.items()})
    assert all(map(np.array_equal, jax.tree.leaves(load_hf(folder)[1]), jax.tree.leaves(PARAMS)))


def test_what_is_no_checkpoint_says_what_to_give(folder):
    with pytest.raises(FileNotFoundError, match="model.safetensors is a file: give its folder"):
        load_hf(folder / "model.safetensors")
    edit_config(folder, quantization_config={"quant_method": "awq"})
    with pytest.raises(ValueError, match="quantization_config=.*give a checkpoint without it, not quantized"):
        load_hf(folder)
    edit_config(folder, quantization_config=None)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:x\nsize 3\n")
    with pytest.raises(ValueError, match="model.safetensors: not a safetensors file, but a Git LFS pointer; .*git lfs pull"):
        load_hf(folder)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="an adapter only: merge it"):
        load_hf(folder)


def test_rope_scaling_added_by_hand_keeps_the_theta_of_rope_parameters(folder):
    edit_config(folder, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5},
                rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})
    config, _ = load_hf(folder)
    assert (config.rope_theta, config.rope_scaling.kind) == (5e5, "yarn")


def test_an_embedding_model_without_lm_head(folder):
    rewrite(folder, lambda tensors: without_head(bare(tensors)))
    with pytest.raises(ValueError, match="'lm_head.weight'.*tie_word_embeddings=false.*head=False"):
        load_hf(folder)
    config, params = load_hf(folder, head=False)
    assert config.tie_embeddings and "lm_head" not in params
    np.testing.assert_array_equal(params["embed_tokens"], PARAMS["embed_tokens"])
    edit_config(folder, tie_word_embeddings=True)
    assert load_hf(folder)[0].tie_embeddings


def test_a_tie_that_the_weights_contradict(folder):
    edit_config(folder, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="'lm_head.weight' differs.*set it to false"):
        load_hf(folder)


@pytest.mark.parametrize("layers", [1, 3])
def test_another_number_of_layers(folder, layers):
    edit_config(folder, num_hidden_layers=layers, layer_types="absent", max_window_layers="absent")
    with pytest.raises(ValueError, match=f"num_hidden_layers={layers}, the weights have 2 layers; set it to 2"):
        load_hf(folder)


@pytest.mark.parametrize("field, value", [("hidden_size", "16"), ("num_hidden_layers", 2.0), ("vocab_size", -1),
                                          ("rms_norm_eps", float("nan")), ("head_dim", True), ("rope_theta", 0),
                                          ("tie_word_embeddings", "no"), ("rope_scaling", [4]), ("layer_types", "full"),
                                          ("rope_scaling", {"rope_type": "linear", "factor": "4"})])
def test_fields_of_another_type_are_named(folder, field, value):
    edit_config(folder, **{field: value})
    with pytest.raises(ValueError, match=rf"config.json: {field}"):
        load_hf(folder)


def test_an_index_names_files_of_its_folder(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    for shard, words in (("../elsewhere.safetensors", "not a file of this folder"), (3, "not a safetensors index"),
                         ("gone.safetensors", "shard is missing")):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            load_hf(folder)


def test_a_runs_folder_says_which_folder_inside_is_a_model(tmp_path, folder):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text('{"policy": {"init": "x"}}')
    with pytest.raises(ValueError, match="run is not a model: .* no model yet.*launch export"):
        load_hf(run)
    shutil.copytree(folder, run / "models" / "policy")
    with pytest.raises(ValueError, match="run is not a model: .*give .*run/models/policy"):
        load_hf(run)
    with pytest.raises(FileNotFoundError, match="give .*run/models/policy"):
        load_hf(run / "models")


def test_a_model_is_not_read_with_another_vocabulary(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(asset_path("asset:real/policy"), folder)
    shutil.copytree(asset_path(REAL), folder, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="other ids than the tokenizer .*tiny_world.*set tokenizer to"):
        load_hf(folder, tokenizer=load_tokenizer("asset:tiny_world/tokenizer"))
    # The same vocabulary in another file, and one with fewer added tokens, do not contradict it.
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"] = spec["added_tokens"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec, indent=1))
    assert load_hf(folder, tokenizer=load_tokenizer(tmp_path))[0].num_ids == 4095
    assert load_hf(folder, tokenizer=load_tokenizer(REAL))[0].num_ids is None
    # Another order of the same words does.
    spec["added_tokens"][0]["content"], spec["added_tokens"][1]["content"] = "<|im_start|>", "<|endoftext|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="has the id"):
        load_hf(folder, tokenizer=load_tokenizer(tmp_path))


def test_special_tokens_that_nothing_writes_need_no_row(tmp_path):
    import tokenizers

    folder = tmp_path / "model"  # as Gemma 3's text models: 262,144 rows, and <image_soft_token> has the id 262144
    shutil.copytree(asset_path("asset:real/policy"), folder)
    shutil.copytree(asset_path(REAL), folder, dirs_exist_ok=True)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["<image_soft_token>"])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.ids_in_use, load_tokenizer(REAL).ids_in_use) == (4097, 4096, 4096)
    assert load_hf(folder, tokenizer=tokenizer)[0].num_ids is None
    assert max(tokenizer.encode_text("a <image_soft_token> b")) < 4096
    # One that ends generations, and one that is text, need theirs.
    (folder / "generation_config.json").write_text('{"eos_token_id": 4096}')
    with pytest.raises(ValueError, match="has 4096 rows, but the tokenizer .* has 4097 ids"):
        load_hf(folder, tokenizer=load_tokenizer(folder))
    (folder / "generation_config.json").unlink()
    backend.add_tokens(["word"])
    backend.save(str(folder / "tokenizer.json"))
    with pytest.raises(ValueError, match="has 4096 rows, but the tokenizer .* has 4098 ids"):
        load_hf(folder, tokenizer=load_tokenizer(folder))


def test_a_runs_folder_says_which_folder_inside_has_a_tokenizer(tmp_path):
    shutil.copytree(asset_path(REAL), tmp_path / "models" / "policy")
    with pytest.raises(FileNotFoundError, match="there is one in a folder inside; give .*models/policy$"):
        load_tokenizer(tmp_path)
    pointer = tmp_path / "models" / "policy" / "tokenizer.json"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="Git LFS pointer; fetch"):
        load_tokenizer(pointer.parent)


def test_random_weights_need_a_row_for_every_id():
    shape = dict(vocab_size=64, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
    with pytest.raises(ValueError, match="has 4096 ids.*only 64 rows"):
        build.model(ModelConfig(init="random", shape=shape), load_tokenizer(REAL), seed=0)
    config, _ = build.model(ModelConfig(init="random", shape=shape | {"vocab_size": 4100}), load_tokenizer(REAL), seed=0)
    assert config.num_ids == 4096


@pytest.mark.parametrize("named", ["tokenizer.json", "toy.model"])
def test_an_export_keeps_the_tokenizers_configs(tmp_path, named):
    source = tmp_path / "source"
    source.mkdir()
    if named == "tokenizer.json":
        shutil.copytree(asset_path(REAL), source, dirs_exist_ok=True)
    else:
        import sentencepiece

        with open(source / named, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(["a b c d"] * 5), model_writer=file, vocab_size=20, hard_vocab_limit=False,
                minloglevel=2)
        (source / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    tokenizer = load_tokenizer(source / named)
    config = DecoderConfig(**{**UNTIED.__dict__, "vocab_size": 4096})
    out = save_hf(tmp_path / "out", config, init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    again = load_tokenizer(out)
    assert (out / "tokenizer_config.json").exists()
    assert (again.eos_ids, again.bos_ids, again.vocab) == (tokenizer.eos_ids, tokenizer.bos_ids, tokenizer.vocab)
    eos = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert (eos if isinstance(eos, list) else [eos]) == list(tokenizer.eos_ids)


def test_padding_rows_are_left_out_of_sampling_and_scoring_alike():
    """A model with 8 rows of padding computes what the one without them does."""
    padded = DecoderConfig(**{**UNTIED.__dict__, "num_ids": 16})
    cut = DecoderConfig(**{**UNTIED.__dict__, "vocab_size": 16})
    params = jax.tree.map(lambda x: 20 * x, PARAMS)
    small = {**params, "embed_tokens": params["embed_tokens"][:16],
             "lm_head": {"kernel": params["lm_head"]["kernel"][:, :16]}}
    prompt = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
    lengths = jnp.array([6, 4])
    out = generate(params, padded, prompt, lengths, key=jax.random.key(1), max_new_tokens=40, temperature=2.0)
    assert (out.tokens < 16).all()
    tokens = jnp.concatenate([prompt[:1], out.tokens[:1]], axis=1)

    def score(config, params):
        return make_score(config, chunk=8)(params, tokens, jnp.ones_like(tokens, bool))

    logprobs, entropy = score(padded, params)
    wanted, wanted_entropy = score(cut, small)
    np.testing.assert_allclose(logprobs, wanted, atol=2e-5)
    np.testing.assert_allclose(entropy, wanted_entropy, atol=2e-5)
    full = jax.nn.log_softmax(forward(params, padded, tokens)[:, 5:-1] / 2.0)
    np.testing.assert_allclose(jnp.take_along_axis(full, tokens[:, 6:, None], axis=2)[0, :, 0], out.logprobs[0], atol=2e-5)


def test_padding_rows_get_no_gradient():
    rng = np.random.default_rng(0)
    hidden, unembed = jnp.asarray(rng.normal(size=(2, 7, 5))), jnp.asarray(rng.normal(size=(5, 24)))
    tokens = jnp.asarray(rng.integers(0, 16, (2, 7)))

    def objective(unembed):
        logprobs, entropy = token_logprobs(hidden, unembed, tokens, chunk=3, num_ids=16, temperature=0.7)
        return (logprobs + 0.1 * entropy).sum()

    gradient = jax.grad(objective)(unembed)
    assert np.isfinite(gradient).all() and (gradient[:, 16:] == 0).all() and (gradient[:, :16] != 0).any()
