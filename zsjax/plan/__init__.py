"""Whether a run fits a target, how long a step must at least take, and what to change: without the target or weights.

    python -m zsjax.launch plan --config experiments/zerosearch_qwen25.py:policy=7b,simulator=14b,target=a100-80gb:8

Each figure says whether it is exact (it follows from shapes and shardings, or a compiler counted it) or estimated. The
three programs of a step are really compiled by the target's compiler: for TPUs with pip install 'zsjax[plan]', for NVIDIA
GPUs with 'zsjax[plan-gpu]' in an environment of its own. Without the latter a plan for GPUs is an estimate.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

from zsjax import config as configuration
from zsjax.config import Config
from zsjax.config.checks import find_device_problems, find_problems
from zsjax.errors import ConfigError, UserError
from zsjax.parallel.constrain import compiling_for
from zsjax.plan import memory
from zsjax.plan.setup import PlanSetup, make_setup
from zsjax.plan.targets import PlanTarget, read_target, readable
from zsjax.plan.topology import has_compiler
from zsjax.plan.work import Work, step_work

# The share of a device's memory that a process can use: launch/env.sh gives XLA 92 % of a GPU's; TPU runtimes keep some.
USABLE = {"gpu": 0.92, "tpu": 0.97}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a target.

    Attributes:
      figures: bytes on one device, by part and phase.
      compiled: the compiler's figures of each program, see `zsjax.plan.aot`; empty where nothing was compiled.
      work: FLOPs and least seconds of the parts of a step on one device.
      advice: flags that make it fit. () where it fits, and where none were found.
    """

    setup: PlanSetup
    figures: list[memory.Figure]
    compiled: list[dict]
    work: list[Work]
    advice: tuple[str, ...] = ()

    @property
    def usable(self) -> float:
        chip = self.setup.target.chip
        return chip.memory * USABLE[chip.kind]

    @property
    def peak(self) -> float:
        """The most bytes on one device: the compiler's count where there is one."""
        if self.compiled:
            return max(_compiled_peak(self, line) for line in self.compiled)
        return max(memory.peak(self.figures).values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.usable

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.work)


def make_plan(config: Config, target: str = "", *, compiles: bool = True, advise: bool = True) -> Plan:
    """The plan of `config` on "CHIP:NUMBER".

    Args:
      target: "" is config.mesh.target, the machine that the settings are chosen for.
      compiles: compile the programs (minutes for models of billions of parameters); for GPUs only if jax's CUDA plug-in is
        installed.
      advise: look for settings that fit, if the config's do not.

    Raises:
      UserError: an unknown target, a config that cannot run on its devices, an unknown shape, or no libtpu.
    """
    if not (target := target or config.mesh.target):
        raise UserError("plan needs a machine: give --target CHIP:NUMBER, such as a100-80gb:8, or set mesh.target")
    try:
        target = read_target(target)
    except ValueError as error:
        raise UserError(f"--target: {error}") from error
    problems = find_problems(config, files=False) or find_device_problems(config, target.devices)
    if problems:
        raise ConfigError(problems)
    plan = _estimate(config, target)
    if compiles and (target.chip.kind == "tpu" or has_compiler("gpu")):
        plan = dataclasses.replace(plan, compiled=compile_programs(config, target))
    if advise and not plan.fits:
        plan = dataclasses.replace(plan, advice=_advice(config, target))
    return plan


def _estimate(config, target, *, times: bool = True) -> Plan:
    """times: also the work of a step, which takes a third of the estimate."""
    setup = make_setup(config, target)
    try:
        with compiling_for(target.chip.kind):  # without its kernels, which need their libraries to be traced
            return Plan(setup, memory.footprint(setup), [], step_work(setup) if times else [])
    except ValueError as error:  # heads that do not divide the tensor axis
        raise UserError(str(error)) from error


def compile_programs(config: Config, target: PlanTarget) -> list[dict]:
    """The lines of `zsjax.plan.aot`, from a process of its own: libtpu reads its environment when it is loaded."""
    if not has_compiler(target.chip.kind):
        raise UserError("a plan for TPUs needs the TPU's compiler: pip install 'zsjax[plan]'; or --estimate does without")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "config.json"
        path.write_text(configuration.to_json(config))
        # Else the compiler looks for a TPU, asks the cloud for its place, and locks it.
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        if target.chip.kind == "tpu":
            environment |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                            "TPU_ACCELERATOR_TYPE": f"{target.name}-{target.devices}", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        done = subprocess.run([sys.executable, "-m", "zsjax.plan.aot", str(path), f"{target.name}:{target.devices}"],
                              env=environment, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise UserError(f"the compiler for {target} failed: {done.stderr.strip()[-800:]}")
    return lines


def _compiled_peak(plan: Plan, line: dict) -> float:
    """Bytes while one program runs: the program's, and the other arrays on the device."""
    if "error" in line:
        return float("inf")
    always = {f.name: f.bytes for f in plan.figures if f.phase == memory.ALWAYS}
    own = line["arguments"] + line["outputs"] - line["aliased"] + line["temporaries"] + line["code"]
    needed = memory.ARGUMENTS[line["program"]]
    return own + sum(size for name, size in always.items() if name not in needed)


# Changes that make a step smaller, the cheapest first: (field, (config, setup) -> value).
_CHANGES: list[tuple[str, Callable]] = [
    ("train.remat", lambda config, setup: "layers"),
    ("train.microbatch_rows", lambda config, setup: setup.shards),
    ("train.microbatch_tokens",  # a row of each shard; where rows are not packed by tokens, nothing
     lambda config, setup: config.train.microbatch_tokens and setup.shards * config.rollout.max_tokens),
    ("mesh.fsdp", lambda config, setup: -1 if config.mesh.data != -1 else setup.target.devices // setup.tensor),
    ("simulator.param_dtype", lambda config, setup: "bfloat16"),
    ("policy.dtype", lambda config, setup: "bfloat16"),
    ("train.logprob_chunk", lambda config, setup: min(config.train.logprob_chunk, 128)),
    ("rollout.rows", lambda config, setup: max(setup.schedule.sizes(setup.rollout_rows)[0] // 2, 8)),
    ("mesh.tensor", lambda config, setup: 2 * setup.tensor),
    ("simulator.quantize", lambda config, setup: "int8"),
    ("policy.cache_dtype", lambda config, setup: "int8"),
    ("simulator.cache_dtype", lambda config, setup: "int8"),
]
# The last resorts: another training, not only another use of the machine. The text says so beside the advice.
_LAST_CHANGES: list[tuple[str, Callable]] = [
    ("train.group_size", lambda config, setup: max(config.train.group_size // 2, 2)),
    ("policy.lora.rank", lambda config, setup: config.policy.lora.rank or 16),
]
_OTHER_TRAINING = {"train.group_size": "smaller groups are another training",
                   "policy.lora.rank": "adapters are trained instead of the whole policy, which is another training"}


class _Search:
    """Plans of a config with fields changed; each is estimated once.

    Attributes:
      made: (field, text) of the changes that were taken; of equal fields the last counts.
      plan: the estimate with them.
    """

    def __init__(self, config: Config, target: PlanTarget):
        self._config, self._target, self.made = config, target, ()
        self.plan = _estimate(config, target, times=False)
        self._plans = [self.plan]

    def take(self, field: str, value_of: Callable):
        """Takes a change, again and again as long as the peak falls and is too high."""
        while not self.plan.fits:
            candidate = *self.made, (field, str(value_of(self.plan.setup.config, self.plan.setup)))
            smaller = self._changed(candidate)
            if smaller is None or smaller.peak >= self.plan.peak:
                return
            self.made, self.plan = candidate, smaller

    def drop_what_is_not_needed(self):
        """Takes changes back, the last first, where the run fits without them."""
        for change in reversed(self.made):
            rest = tuple(other for other in self.made if other is not change)
            without = self._changed(rest)
            if without is not None and without.fits:
                self.made, self.plan = rest, without

    def _changed(self, changes) -> Plan | None:
        """None where such a config cannot run."""
        try:
            config = configuration.resolve(self._config, dict(changes), check=False)
            found = next((plan for plan in self._plans if plan.setup.config == config), None)
            if found is None:
                if find_problems(config, files=False) or find_device_problems(config, self._target.devices):
                    return None
                found = _estimate(config, self._target, times=False)
                self._plans.append(found)
            return found
        except UserError:
            return None


def _advice(config: Config, target: PlanTarget) -> tuple[str, ...]:
    """Flags that together make the estimate fit, none of which can be left out; () if no changes do."""
    search, known = _Search(config, target), []
    for changes in (_CHANGES, *([change] for change in _LAST_CHANGES)):
        known, before = [*known, *changes], None
        while search.made != before and not search.plan.fits:
            before = search.made
            for field, value_of in changes:
                search.take(field, value_of)
            changes = known  # another phase may be the peak now, so that earlier changes count again
    if not search.plan.fits:
        return ()
    search.drop_what_is_not_needed()
    return tuple(f"--config.{field}={text}" for field, text in dict(search.made).items())


def _phase(phase: dict) -> str:
    turns = "" if phase["turns"] == 1 else f" x {phase['turns']}" if phase["turns"] else " a turn"
    name = f"{phase['name']}{turns}"
    return (f"  {name:<52} {readable(1e6 * phase['seconds'], 'us'):>9}  predicted; {phase['kernels']} kernels, "
            f"{readable(phase['bytes'], 'B')}, {readable(sum(phase['flops'].values()), 'FLOP')}")


def describe(plan: Plan) -> str:
    """The plan as text."""
    setup, target = plan.setup, plan.setup.target

    def of(model):
        return f"{model.num_layers} layers of {model.embed_dim}, {model.num_heads}/{model.num_kv_heads} heads"

    mesh = " x ".join(f"{name} {size}" for name, size in setup.mesh.shape.items())
    train, rollout = setup.config.train, setup.config.rollout
    lines = [f"{setup.config.name} on {target}  (mesh {mesh}; {target.chip.source})", f"  policy     {of(setup.policy)}"]
    if setup.simulator is not None:
        lines.append(f"  simulator  {of(setup.simulator)}")
    lines.append(f"  a step     {train.questions_per_step} questions x {train.group_size} episodes of {rollout.max_tokens} "
                 f"tokens; {setup.rollout_rows} rows a shard in the rollout, "
                 f"{setup.micro_rows(setup.update_rows)} at a time in the update")
    if setup.config.mesh.target not in ("", target.text):
        lines.append(f"  the settings are chosen for {setup.config.mesh.target} (mesh.target)")
    if setup.stand_in:
        lines.append(f"  {setup.config.tokenizer} is not on this machine: lengths of prompts are a stand-in tokenizer's")
    for phase in (memory.ALWAYS, *memory.peak(plan.figures)):
        lines.append(f"\nbytes on each device, {'always there' if phase == memory.ALWAYS else phase}")
        lines += [f"  {figure.name:<52} {readable(figure.bytes, 'B'):>9}  {'exact' if figure.exact else 'estimated'}"
                  for figure in plan.figures if figure.phase == phase and figure.bytes]
        if phase != memory.ALWAYS:
            lines.append(f"  {'= with what is always there':<52} {readable(memory.peak(plan.figures)[phase], 'B'):>9}  "
                         "estimated")
    for line in plan.compiled:
        if "error" in line:
            lines.append(f"\ncompiled {line['program']}: does not compile: {line['error']}")
        else:
            lines.append(f"\ncompiled {line['program']}: arguments {readable(line['arguments'], 'B')}, temporaries "
                         f"{readable(line['temporaries'], 'B')}, {readable(_compiled_peak(plan, line), 'B')} with what lies "
                         f"beside; {readable(line['flops'], 'FLOP')} with each loop's body once  exact")
            lines += [_phase(phase) for phase in line["phases"]]
    lines.append("\nleast seconds of a step at the published peaks  (exact counts of products, every row at its longest)")
    lines += [f"  {part.name:<52} {part.seconds:9.3g} s  {readable(part.flops, 'FLOP')}" for part in plan.work]
    lines.append(f"  {'= a step, no run can be faster':<52} {plan.seconds:9.3g} s  "
                 f"{readable(sum(part.flops for part in plan.work), 'FLOP')} a device")
    kind = "exact" if plan.compiled else "estimated, nothing was compiled"
    peak = "more than there is" if plan.peak == float("inf") else readable(plan.peak, "B")
    lines.append(f"\n{'FITS' if plan.fits else 'DOES NOT FIT'}: {peak} of {readable(plan.usable, 'B')} usable "
                 f"({readable(target.chip.memory, 'B')})  {kind}")
    if not plan.compiled and not has_compiler(target.chip.kind):
        extra = "plan-gpu" if target.chip.kind == "gpu" else "plan"
        lines.append(f"  to compile: pip install 'zsjax[{extra}]', in an environment of its own")
    if not plan.fits:
        lines.append("  try " + " ".join(plan.advice) if plan.advice else "  no change of remat, microbatches, "
                     "rollout.rows, mesh, dtypes, group size or adapters makes it fit: take more devices")
        lines += [f"  {field}: {what}" for field, what in _OTHER_TRAINING.items()
                  if any(flag.startswith(f"--config.{field}=") for flag in plan.advice)]
    return "\n".join(lines)
