"""LoRA (Hu et al., arXiv 2106.09685): W + (alpha / rank) A B on chosen projections, with only A and B trained.

    adapters = init_adapters(config, lora, key)               # a pytree of its own: what the optimizer sees
    logits = forward(attach(params, adapters, lora), config, tokens)
    save_hf(path, config, merge(params, adapters, lora))

`attach` copies no weights, so the model without its adapters, the reference of the KL, is `params` and costs nothing.
`lora` is anything with the fields rank, alpha and targets (`zsjax.config.LoraConfig`).
"""

import math

import jax
import jax.numpy as jnp

from zsjax.errors import InputError
from zsjax.models.decoder import ParamSpec, param_specs
from zsjax.models.layers import DecoderConfig

__all__ = ["TARGETS", "adapter_specs", "assembler", "attach", "init_adapters", "merge"]

TARGETS = {"q_proj": "attn", "k_proj": "attn", "v_proj": "attn", "o_proj": "attn",
           "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}


def adapter_specs(config: DecoderConfig, lora) -> dict:
    """The adapters as `ParamSpec`s: {"layers": [{"attn": {"q_proj": {"a": [i, r], "b": [r, o]}}}]}, all float32.

    The axes are the kernel's own, so the rules that shard a kernel shard its adapter.

    Raises:
      ValueError: rank < 1, no targets, or a target that is not a projection.
    """
    unknown = [name for name in lora.targets if name not in TARGETS]
    if unknown or not lora.targets:
        raise InputError(f"lora.targets={tuple(lora.targets)}: name some of {', '.join(TARGETS)}")
    if lora.rank < 1:
        raise InputError(f"lora.rank={lora.rank}: give 1 or more")

    def pair(spec):
        (inputs, outputs), (input_axis, output_axis) = spec.shape, spec.axes
        return {"a": ParamSpec((inputs, lora.rank), (input_axis, None)),
                "b": ParamSpec((lora.rank, outputs), (None, output_axis), "zeros")}

    def layer(specs):
        parts = {}
        for name in lora.targets:
            parts.setdefault(TARGETS[name], {})[name] = pair(specs[TARGETS[name]][name]["kernel"])
        return parts

    return {"layers": [layer(specs) for specs in param_specs(config)["layers"]]}


def init_adapters(config: DecoderConfig, lora, key) -> dict:
    """Adapters that change nothing yet: A normal with deviation i^-1/2, B zero. float32, as they are trained."""
    leaves, treedef = jax.tree.flatten(adapter_specs(config, lora), is_leaf=lambda x: isinstance(x, ParamSpec))
    return treedef.unflatten([
        jnp.zeros(spec.shape) if spec.init == "zeros" else jax.random.normal(key, spec.shape) / math.sqrt(spec.shape[0])
        for spec, key in zip(leaves, jax.random.split(key, len(leaves)), strict=True)])


def _change_kernels(params, adapters, change):
    """params with change(projection, adapter) in place of every projection that has an adapter."""
    def layer(base, extra):
        return base | {part: base[part] | {name: change(base[part][name], pair) for name, pair in pairs.items()}
                       for part, pairs in extra.items()}

    return params | {"layers": [layer(*pair) for pair in zip(params["layers"], adapters["layers"], strict=True)]}


def attach(params, adapters, lora) -> dict:
    """The decoder's parameters with the adapters beside the kernels, for every function that takes parameters.

    Gradients with respect to `adapters` flow. The arrays of `params` are the same ones, not copies; they may be
    `Int8Matrix`.
    """
    scale = lora.alpha / lora.rank
    return _change_kernels(params, adapters, lambda projection, pair: projection | {
        "lora_a": pair["a"], "lora_b": pair["b"] * scale})


def assembler(lora):
    """assemble(trained, frozen) -> the decoder's parameters, for `zsjax.rl.steps.make_update`: `attach` of the trained
    adapters to the frozen model; without a rank (or with None), what is trained itself."""
    if lora is None or lora.rank == 0:
        return lambda trained, frozen: trained
    return lambda trained, frozen: attach(frozen, trained, lora)


def merge(params, adapters, lora) -> dict:
    """The decoder's parameters with kernel + (alpha / rank) A B, summed in float32, in the kernel's dtype."""
    scale = lora.alpha / lora.rank

    def change(projection, pair):
        kernel = projection["kernel"]
        product = jnp.matmul(pair["a"], pair["b"], precision="highest", preferred_element_type=jnp.float32)
        return projection | {"kernel": (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)}

    return _change_kernels(params, adapters, change)
