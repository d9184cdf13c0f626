"""Checks of the models and the tokenizer."""

import dataclasses

from zsjax.config.checks.search import uses_simulator

# A shape that `init="random"` must give; vocab_size is the tokenizer's where it is left out.
SHAPE = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")


def check_models(found, config):
    found.is_path("tokenizer")
    for name, needed in (("policy", True), ("simulator", uses_simulator(config))):
        model = getattr(config, name)
        if model.lora.rank > 0 and not model.lora.targets:
            found.add(f"{name}.lora.targets", "no projection gets an adapter", f"name some, or set {name}.lora.rank to 0")
        if model.init == "random":
            if needed:
                _check_shape(found, f"{name}.shape", model.shape)
            continue
        if needed:
            found.is_path(f"{name}.init")
        if model.shape:
            found.add(f"{name}.shape", f"the shape is read from {model.init}", f"remove it, or set {name}.init to 'random'")
        if model.positional_bias_init:
            found.add(f"{name}.positional_bias_init", "only random weights can be given a start",
                      f"set it to false, or {name}.init to 'random'")
    if config.policy.quantize != "none":
        found.add("policy.quantize", "only the frozen simulator is quantized: int8 weights have no gradient",
                  "set it to 'none'")


def _check_shape(found, field, shape):
    from zsjax.models.layers import DecoderConfig

    known = {f.name: f.type for f in dataclasses.fields(DecoderConfig)}
    known = {name: kind for name, kind in known.items() if name not in ("dtype", "attention")}  # fields of their own
    unknown = [name for name in shape if name not in known]
    missing = [name for name in SHAPE if name not in shape]
    bad = [name for name in (*SHAPE, "vocab_size")
           if not (type(shape.get(name, 1)) is int and 0 < shape.get(name, 1) <= 10_000_000)]
    if unknown:
        found.add(field, f"{unknown[0]!r} is unknown here", f"known: {', '.join(known)}")
    elif missing:
        found.add(field, f"random weights need {', '.join(missing)}", "give them, or name a checkpoint as init")
    elif bad:
        found.add(field, f"{bad[0]}={shape[bad[0]]!r} is not a size", "give a whole number above 0, up to 10,000,000")
    else:
        found.loads(field, lambda shape: DecoderConfig(**({"vocab_size": 1} | shape)), "change the shape")
