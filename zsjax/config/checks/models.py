"""Checks of the models and the tokenizer."""

import dataclasses

from zsjax.config.checks.names import ATTENTION, DTYPES, LORA_TARGETS, SHAPE
from zsjax.config.checks.search import uses_simulator


def check_models(found, config):
    found.is_path("tokenizer")
    for name, needed in (("policy", True), ("simulator", uses_simulator(config))):
        model = getattr(config, name)
        found.one_of(f"{name}.dtype", DTYPES)
        found.one_of(f"{name}.param_dtype", DTYPES)
        found.one_of(f"{name}.attention", ATTENTION)
        found.one_of(f"{name}.quantize", ("none", "int8"))
        found.one_of(f"{name}.cache_dtype", ("model", "int8"))
        found.at_least(0, f"{name}.lora.rank")
        found.positive(f"{name}.lora.alpha")
        if model.lora.rank > 0 and not (model.lora.targets and set(model.lora.targets) <= set(LORA_TARGETS)):
            found.add(f"{name}.lora.targets", "not projections", f"name some of {', '.join(LORA_TARGETS)}")
        if model.init == "random":
            if needed:
                _check_shape(found, f"{name}.shape", model.shape)
        else:
            if needed:
                found.is_path(f"{name}.init")
            if model.shape:
                found.add(f"{name}.shape", f"the shape is read from {model.init}", f"remove it, or set {name}.init to "
                          "'random'")
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
    if unknown:
        found.add(field, f"{unknown[0]!r} is unknown here", f"known: {', '.join(known)}")
    elif missing:
        found.add(field, f"random weights need {', '.join(missing)}", "give them, or name a checkpoint as init")
    else:
        bad = [name for name in (*SHAPE, "vocab_size")
               if not isinstance(shape.get(name, 1), int) or shape.get(name, 1) < 1]
        if bad:
            found.add(field, f"{bad[0]}={shape[bad[0]]!r} is no count", "give a whole number above 0")
            return
        try:
            DecoderConfig(**({"vocab_size": 1} | shape))
        except (TypeError, ValueError) as error:
            found.add(field, str(error), "change the shape")
