"""A plan as text, from its JSON document."""

from zsjax.plan.document import document
from zsjax.plan.estimate import Plan
from zsjax.plan.memory import ALWAYS
from zsjax.plan.targets import readable


def describe(plan: Plan) -> str:
    """The plan as text."""
    return write(document(plan))


def write(found: dict) -> str:
    """The text of a document of `zsjax.plan.document`."""
    return "\n".join([*_head(found), *_memory(found), *_compiled(found), *_work(found), *_verdict(found)])


def _head(found):
    mesh = " x ".join(f"{name} {size}" for name, size in found["mesh"].items())
    target, step = found["target"], found["step"]
    yield f"{found['name']} on {_machine(target)}  (mesh {mesh}; {target['chip']['source']})"
    for name, model in found["models"].items():
        yield (f"  {name:<9}  {model['layers']} layers of {model['embed_dim']}, {model['heads']}/{model['kv_heads']} heads")
    yield (f"  a step     {step['questions']} questions x {step['group_size']} episodes of {step['tokens']} tokens; "
           f"{step['rollout_rows']} rows a shard in the rollout, {step['update_rows']} at a time in the update")
    if found["settings_for"] not in ("", target["name"]):
        yield f"  the settings are chosen for {found['settings_for']} (mesh.target)"
    if found["stand_in_for"]:
        yield f"  {found['stand_in_for']} is not on this machine: lengths of prompts are a stand-in tokenizer's"


def _machine(target) -> str:
    return f"{target['devices']} x {target['name'].partition(':')[0]}"


def _memory(found):
    for phase in (ALWAYS, *found["estimated_peaks"]):
        yield f"\nbytes on each device, {'always there' if phase == ALWAYS else phase}"
        for figure in found["memory"]:
            if figure["phase"] == phase:
                yield _row(figure["name"], readable(figure["bytes"], "B"), "exact" if figure["exact"] else "estimated")
        if phase != ALWAYS:
            yield _row("= with what is always there", readable(found["estimated_peaks"][phase], "B"), "estimated")


def _row(name, figure, kind) -> str:
    return f"  {name:<52} {figure:>9}  {kind}"


def _compiled(found):
    for line in found["compiled"]:
        if "error" in line:
            yield f"\ncompiled {line['program']}: does not compile: {line['error']}"
            continue
        yield (f"\ncompiled {line['program']}: arguments {readable(line['arguments'], 'B')}, temporaries "
               f"{readable(line['temporaries'], 'B')}")
        yield _row("bytes with what lies beside", readable(line["peak"], "B"), "exact" + _against(
            line["estimated_peak"], "B", line.get("difference")))
        if line["flops"]:
            yield _row("products of all turns of its loops", readable(line["flops"], "FLOP"), "exact" + _against(
                line.get("estimated_flops"), "FLOP", line.get("flops_difference")))
        for phase in line["phases"]:
            yield from _phase(phase)
    if found["compiled"]:
        yield ("  floor: arrays from outside of a phase are read once, its results written once, nothing computed again,\n"
               "  at the published bandwidth and peak. Copies are of 1 MiB or more")
    if found["not_counted"]:
        yield "\nnot counted\n" + "\n".join(f"  {line}" for line in found["not_counted"])


def _against(estimate, unit, difference) -> str:
    return "" if difference is None else f"; estimated {readable(estimate, unit)}, so {100 * difference:+.0f} %"


def _phase(phase):
    turns = "" if phase["turns"] == 1 else f" x {phase['turns']}" if phase["turns"] else " a turn"
    floor = phase["floor"]
    yield _row(f"{phase['name']}{turns}", readable(1e6 * phase["seconds"], "us"),
               f"predicted; {phase['kernels']} kernels, {readable(phase['bytes'], 'B')}, {_products(phase['flops'])}")
    yield _row("", readable(1e6 * floor["seconds"], "us"),
               f"floor; {readable(floor['bytes'], 'B')}, {_products(floor['flops'])}")
    for kind, size in phase["exchanged"].items():
        yield _row("", readable(size, "B"), f"exchanged by {kind}")
    if phase["copies"]:
        widened = f", of which {readable(phase['widened'], 'B')} in a larger dtype" if phase["widened"] else ""
        yield _row("", readable(phase["copied"], "B"), f"in {phase['copies']} copies{widened}")


def _products(flops) -> str:
    return ", ".join(f"{readable(count, 'FLOP')} in {dtype}" for dtype, count in flops.items() if count) or "no products"


def _work(found):
    yield "\nleast seconds of a step at the published peaks  (exact counts of products, every row at its longest)"
    for part in found["work"]:
        yield f"  {part['name']:<52} {part['seconds']:9.3g} s  {readable(part['flops'], 'FLOP')}"
    yield (f"  {'= a step, no run can be faster':<52} {found['seconds']:9.3g} s  "
           f"{readable(sum(part['flops'] for part in found['work']), 'FLOP')} a device")


def _verdict(found):
    chip = found["target"]["chip"]
    kind = ("estimated, nothing was compiled" if not found["compiled"] else
            f"exact but for the {', '.join(found['only_estimated'])}, estimated" if found["only_estimated"] else "exact")
    peak = "more than there is" if found["peak"] is None else readable(found["peak"], "B")
    yield (f"\n{'FITS' if found['fits'] else 'DOES NOT FIT'}: {peak} of {readable(found['usable'], 'B')} usable "
           f"({readable(chip['memory'], 'B')})  {kind}")
    if not found["compiled"] and not found["can_compile"]:
        extra = "plan-gpu" if chip["kind"] == "gpu" else "plan"
        yield f"  to compile: pip install '.[{extra}]' in the checkout"
    if not found["fits"]:
        yield "  try " + " ".join(found["advice"]) if found["advice"] else (
            "  no change of remat, microbatches, rollout.rows, mesh, dtypes, group size or adapters makes it fit: take more "
            "devices")
        for field, what in found["advice_warnings"].items():
            yield f"  {field}: {what}"
