"""A plan: what a run needs on a target, as far as shapes say it; `zsjax.plan.make_plan` adds what a compiler says."""

import dataclasses

from zsjax.config import Config
from zsjax.errors import UserError
from zsjax.parallel.constrain import compiling_for
from zsjax.plan import memory
from zsjax.plan.setup import PlanSetup, make_setup
from zsjax.plan.targets import PlanTarget
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
        estimated = memory.peak(self.figures)
        return max([self.peak_of(line) for line in self.compiled] + [estimated[phase] for phase in self.only_estimated])

    @property
    def only_estimated(self) -> tuple[str, ...]:
        """The phases without a compiled program: all of them, or a rollout that the host drives."""
        compiled = {memory.ESTIMATES.get(memory.program_kind(line["program"])) for line in self.compiled}
        return tuple(phase for phase in memory.peak(self.figures) if phase not in compiled)

    def peak_of(self, line: dict) -> float:
        """Bytes while one compiled program runs: the program's, and the other arrays on the device; inf if it does not
        compile."""
        if "error" in line:
            return float("inf")
        always = {f.name: f.bytes for f in self.figures if f.phase == memory.ALWAYS}
        needed = memory.ARGUMENTS[memory.program_kind(line["program"])]
        beside = sum(size for name, size in always.items() if name not in needed)
        running = line["outputs"] - line["aliased"] + line["temporaries"] + line["code"]
        return beside + line["arguments"] + max(running, memory.grown_from(self.setup, line["program"]))

    @property
    def fits(self) -> bool:
        return self.peak <= self.usable

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.work)


def estimate_plan(config: Config, target: PlanTarget, *, times: bool = True) -> Plan:
    """The plan of a config that can run, without a compiler. times: also the work of a step, a third of the effort."""
    setup = make_setup(config, target)
    try:
        with compiling_for(target.chip.kind):  # without its kernels, which need their libraries to be traced
            return Plan(setup, memory.footprint(setup), [], step_work(setup) if times else [])
    except ValueError as error:  # heads that do not divide the tensor axis
        raise UserError(str(error)) from error
