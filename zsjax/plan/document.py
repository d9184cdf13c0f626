"""A plan as one JSON document: all that the text of a plan says (`zsjax.plan.text`), which is made from it."""

import dataclasses
import math

from zsjax.plan import memory
from zsjax.plan.advice import OTHER_TRAINING
from zsjax.plan.estimate import Plan
from zsjax.plan.setup import not_counted
from zsjax.plan.topology import has_compiler


def document(plan: Plan) -> dict:
    """The plan in dicts, lists, texts and numbers. Bytes, FLOPs and seconds, of one device and one step.

    A program that does not compile has "error", and "peak": None. "difference" is compiled / estimated - 1. Further keys of
    "compiled" are those of `zsjax.plan.aot.measure` and `counts`.
    """
    setup = plan.setup
    target, train, rollout = setup.target, setup.config.train, setup.config.rollout
    peaks = memory.peak(plan.figures)
    return {
        "name": setup.config.name,
        "target": {"name": target.text, "devices": target.devices, "chip": dataclasses.asdict(target.chip)},
        "settings_for": setup.config.mesh.target,
        "mesh": dict(setup.mesh.shape),
        "models": {name: _shape(model) for name, model in (("policy", setup.policy), ("simulator", setup.simulator))
                   if model is not None},
        "step": {"questions": train.questions_per_step, "group_size": train.group_size, "tokens": rollout.max_tokens,
                 "rollout_rows": setup.rollout_rows, "update_rows": setup.micro_rows(setup.update_rows)},
        "stand_in_for": setup.config.tokenizer if setup.stand_in else "",
        "memory": [dataclasses.asdict(figure) for figure in plan.figures if figure.bytes],
        "estimated_peaks": peaks,
        "compiled": [_program(plan, line, peaks) for line in plan.compiled],
        "not_counted": not_counted(setup),
        "work": [dataclasses.asdict(part) for part in plan.work],
        "seconds": plan.seconds,
        "fits": plan.fits, "peak": _finite(plan.peak), "usable": plan.usable, "only_estimated": plan.only_estimated,
        "can_compile": has_compiler(target.chip.kind),
        "advice": plan.advice,
        "advice_warnings": {field: what for field, what in OTHER_TRAINING.items()
                            if any(flag.startswith(f"--config.{field}=") for flag in plan.advice)},
    }


def _shape(model) -> dict:
    return {"layers": model.num_layers, "embed_dim": model.embed_dim, "heads": model.num_heads,
            "kv_heads": model.num_kv_heads}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _program(plan, line, peaks) -> dict:
    """A compiled program's figures, beside the estimates of the same: its peak, and a step's FLOPs."""
    kind, peak = memory.program_kind(line["program"]), _finite(plan.peak_of(line))
    found = line | {"peak": peak, "estimated_peak": peaks.get(memory.ESTIMATES.get(kind))}
    if peak and found["estimated_peak"]:
        found["difference"] = peak / found["estimated_peak"] - 1
    part = next((part for part in plan.work if part.calls and part.program == kind), None)
    if part is not None and line.get("flops"):
        estimated = part.flops / part.calls
        found |= {"estimated_flops": estimated, "flops_difference": line["flops"] / estimated - 1}
    return found
