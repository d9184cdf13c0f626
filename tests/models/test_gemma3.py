"""Gemma 3's files of both generations, what is refused, and that everything else that takes a decoder takes it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_reference import GEMMA, SHAPE, make_reference, padded_batch, reference_logits

from zsjax.config import LoraConfig
from zsjax.data import load_tokenizer
from zsjax.models import RopeScaling, forward, init_params, load_hf, lora, read_config, save_hf
from zsjax.models.families import PRESETS, find_preset
from zsjax.models.layers import DecoderConfig, rms_norm
from zsjax.models.quant import quantize
from zsjax.models.value import init_value, value_forward
from zsjax.sampling import generate

transformers = pytest.importorskip("transformers")
# The fields of the published gemma-3-270m, transformers 4.
OLD = dict(model_type="gemma3_text", vocab_size=262144, hidden_size=640, num_hidden_layers=18, num_attention_heads=4,
           num_key_value_heads=1, head_dim=256, intermediate_size=2048, max_position_embeddings=32768,
           query_pre_attn_scalar=256, rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=None, sliding_window=512,
           hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=None, final_logit_softcapping=None,
           use_bidirectional_attention=False, _sliding_window_pattern=6, torch_dtype="bfloat16")


def _read(tmp_path, fields):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return read_config(tmp_path)


def test_configs_of_both_generations(tmp_path):
    old = _read(tmp_path, OLD)
    assert old == PRESETS["gemma3-270m"] == find_preset("google/gemma-3-270m-it")
    new = {name: x for name, x in OLD.items() if not name.startswith("rope_")} | dict(rope_parameters=dict(
        full_attention=dict(rope_type="default", rope_theta=1e6), sliding_attention=dict(rope_type="default")))
    assert _read(tmp_path, new) == old
    assert _read(tmp_path, OLD | dict(sliding_window_pattern=2)).sliding_layers == tuple(range(0, 18, 2))
    linear = _read(tmp_path, OLD | dict(rope_scaling=dict(rope_type="linear", factor=8.0), query_pre_attn_scalar=168))
    assert (linear.rope_scaling, linear.sliding_rope_scaling) == (RopeScaling("linear", 8.0), None)
    assert linear.query_scale == 168 ** -0.5
    # The published 4B: what its text_config leaves out is the class's default.
    large = _read(tmp_path, dict(model_type="gemma3", torch_dtype="bfloat16", vision_config={}, text_config=dict(
        hidden_size=2560, intermediate_size=10240, model_type="gemma3_text", num_hidden_layers=34,
        rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024)))
    assert (large.num_heads, large.num_kv_heads, large.vocab_size, large.dtype) == (8, 4, 262208, "bfloat16")
    assert len(large.sliding_layers) == 29 and large.sliding_window == 1024 and large.tie_embeddings


@pytest.mark.parametrize("fields, words", [
    (dict(final_logit_softcapping=30.0), "final_logit_softcapping=30.0"),
    (dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0"),
    (dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
    (dict(hidden_activation="gelu"), "hidden_activation='gelu'"),
    (dict(torch_dtype="float16"), "dtype='float16' overflows"),
    (dict(sliding_window=None), "sliding_window=null"),
    (dict(layer_types=["full_attention"] * 3), "layer_types has 3 entries"),
    (dict(rope_parameters=dict(rope_type="linear", factor=2.0)), "one entry a kind of layer"),
])
def test_what_is_not_implemented_is_one_line(fields, words, tmp_path):
    with pytest.raises(ValueError) as error:
        _read(tmp_path, OLD | fields)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_text_model_of_a_multimodal_checkpoint(tmp_path):
    text = dict(SHAPE, **GEMMA)
    config = transformers.Gemma3Config(text_config=text, vision_config=dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14))
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    ours, params = load_hf(tmp_path)
    tokens, lengths = padded_batch(2, 64, ours.vocab_size)
    valid = np.arange(64) < lengths[:, None]
    logits = np.asarray(forward(params, ours, tokens, valid=valid))
    assert np.abs(logits - reference_logits(model, tokens, lengths))[valid].max() <= 1e-4
    save_hf(tmp_path / "text", ours, params)
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", attn_implementation="eager").eval()
    assert np.abs(logits - reference_logits(alone, tokens, lengths))[valid].max() <= 1e-4


def test_norms_add_one_in_float32_and_have_autodiffs_gradient():
    x, w = jax.random.normal(jax.random.key(0), (3, 64)), jnp.full(64, 0.00390625 * 1.3, jnp.bfloat16)
    exact = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * (1 + w.astype(jnp.float32))
    np.testing.assert_allclose(rms_norm(x, w, eps=1e-6, offset=1.0), exact, rtol=1e-6)

    def plain(x, w):
        return (x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * (1 + w)).sum(axis=0) @ jnp.arange(64.0)

    def ours(x, w):
        return rms_norm(x, w, eps=1e-6, offset=1.0).sum(axis=0) @ jnp.arange(64.0)

    gradients = [jax.grad(function, (0, 1))(x, w.astype(jnp.float32)) for function in (ours, plain)]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma3")
    make_reference("gemma3").save_pretrained(folder)
    return load_hf(folder)


def test_adapters_int8_value_model_and_decoding(model, tmp_path):
    config, params = model
    tokens = padded_batch(2, 48, config.vocab_size)[0]
    logits = forward(params, config, tokens)
    adapters = LoraConfig(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
    extra = jax.tree.map(lambda x: x + 0.05, lora.init_adapters(config, adapters, jax.random.key(0)))
    merged = lora.merge(params, extra, adapters)
    attached = forward(lora.attach(params, extra, adapters), config, tokens)
    np.testing.assert_allclose(attached, forward(merged, config, tokens), atol=2e-3)
    assert np.abs(attached - logits).max() > 0.1
    rounded = forward(quantize(params), config, tokens)
    assert 0 < np.abs(rounded - logits).mean() < 0.1 * np.abs(logits).mean()
    value = init_value(config, params, jax.random.key(0), scale=1.0)
    gradient = jax.grad(lambda v: value_forward(v, config, tokens).sum())(value)
    assert all(np.isfinite(x).all() and np.abs(x).max() > 0 for x in jax.tree.leaves(gradient))
    save_hf(tmp_path / "out", config, merged)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert np.abs(reference_logits(theirs, tokens, [48, 48]) - forward(merged, config, tokens)).max() <= 1e-3


def test_greedy_decoding_beyond_the_window_is_dense(model):
    config, params = model
    tokens, new = padded_batch(1, 10, config.vocab_size)[0], 3 * config.sliding_window
    out = generate(params, config, tokens, np.array([10]), key=jax.random.key(0), max_new_tokens=new, temperature=0.0)
    whole = np.concatenate([tokens, np.asarray(out.tokens)], axis=1)
    logits = jax.nn.log_softmax(jax.jit(forward, static_argnums=1)(params, config, whole)[0, 9:-1])
    dense = np.asarray(jnp.take_along_axis(logits, out.tokens[0][:, None], axis=1))[:, 0]
    np.testing.assert_allclose(out.logprobs[0], dense, atol=1e-5)
    assert np.array_equal(logits.argmax(-1), out.tokens[0])


def test_float16_is_refused_wherever_it_is_asked_for(model, tmp_path):
    config, params = model
    save_hf(tmp_path / "out", config, params)
    with pytest.raises(ValueError, match="dtype='float16' overflows"):
        load_hf(tmp_path / "out", dtype="float16")
    with pytest.raises(ValueError, match="sliding_window"):
        dataclasses.replace(config, sliding_window=None)
    assert hash(DecoderConfig(**{**dataclasses.asdict(config), "sliding_layers": [0, 1]}))


def test_the_end_of_a_turn_ends_a_generation(tmp_path):
    from tokenizers import Tokenizer, models, normalizers

    backend = Tokenizer(models.BPE(vocab={"<eos>": 0, "<end_of_turn>": 1, "a": 2}, merges=[]))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.add_special_tokens(["<eos>", "<end_of_turn>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    assert load_tokenizer(tmp_path).eos_ids == (0,)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}<end_of_turn>{% endfor %}")
    assert load_tokenizer(tmp_path).eos_ids == (0, 1)


def test_random_weights_start_with_norms_that_scale_by_one():
    config = dataclasses.replace(PRESETS["gemma3-270m"], vocab_size=50, num_layers=2, sliding_layers=(0,), dtype="float32")
    params = init_params(config, jax.random.key(0))
    assert not np.any(params["layers"][0]["pre_feedforward_layernorm"]) and not np.any(params["norm"])
    assert 0.005 < np.asarray(forward(params, config, np.arange(8)[None])).std() < 3
