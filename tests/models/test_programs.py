"""How a decoder's programs are made, and what they copy."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests.hlo import optimised
from tests.small_decoders import CONFIG, VARIANTS, make_params
from zsjax.models import decoder
from zsjax.models.cache import init_cache
from zsjax.plan import hlo
from zsjax.sampling import decode


def rows(params, config):
    return jax.grad(lambda params: decoder.forward(params, config, jnp.ones((2, 9), jnp.int32)).sum())(params)


def appended(params, config):
    tokens = jnp.ones((2, 3), jnp.int32)
    return decoder.extend(params, config, tokens, jnp.full(2, 3), init_cache(config, 2, 8))


@pytest.mark.parametrize("program", [rows, appended])
def test_layers_of_a_kind_are_traced_once(monkeypatch, program):
    config = dataclasses.replace(VARIANTS["gemma3"], num_layers=6, sliding_layers=(0, 1, 3, 4))
    traced, layer = [], decoder._layer

    def counted(params, config, window, *rest):
        traced.append(window)
        return layer(params, config, window, *rest)

    monkeypatch.setattr(decoder, "_layer", counted)
    jax.jit(program, static_argnums=1).lower(make_params(config), config)
    assert len(traced) == 2 and set(traced) == {None, config.sliding_window}


def test_decoding_on_cpu_converts_no_embedding():
    if jax.default_backend() != "cpu":
        pytest.skip("on accelerators decoding looks rows of 16 bits up")
    config = dataclasses.replace(CONFIG, vocab_size=1024, dtype="bfloat16", tie_embeddings=False)
    prompts = decode.PromptRows(jnp.ones((2, 4), jnp.int32), jnp.full(2, 4), jnp.arange(2))
    text = optimised(decode._generate.lower(make_params(config), config, prompts, jax.random.key(0), jnp.float32(1),
                                            jnp.array([3]), max_new_tokens=4)).as_text()
    table = config.vocab_size, config.embed_dim
    converted = {shape.dtype for lines in hlo.read(text).computations.values() for line in lines.values()
                 for shape in line.shapes if shape.dims == table and line.opcode == "convert"}
    assert not converted
