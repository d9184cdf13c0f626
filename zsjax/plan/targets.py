"""Accelerators that a run can be planned for, with their makers' published peaks."""

import dataclasses
import math

from zsjax.errors import InputError

GiB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      kind: "gpu" or "tpu".
      memory: bytes of HBM.
      flops: bf16 products with dense operands, FLOP/s.
      bandwidth: HBM, bytes/s.
      source: where the figures stand.
      link: between the devices of one host or slice, bytes/s that one device sends.
      reached: the share of the bandwidth that kernels reach, for predictions.
      launch: seconds that a kernel takes beside its bytes and products, for predictions.
    """

    kind: str
    memory: float
    flops: float
    bandwidth: float
    source: str
    link: float
    reached: float = 1.0
    launch: float = 0.0


# Fitted to decoding on an H100 (benchmarks/RESULTS.md), and assumed for the other GPUs.
_GPU = dict(reached=0.865, launch=1.4e-6)
CHIPS = {
    "a100-80gb": Chip("gpu", 80 * GiB, 312e12, 2.039e12, "NVIDIA A100 80GB SXM data sheet", 300e9, **_GPU),
    "h100": Chip("gpu", 80 * GiB, 989e12, 3.35e12, "NVIDIA H100 SXM data sheet, dense", 450e9, **_GPU),
    "h200": Chip("gpu", 141e9, 989e12, 4.8e12, "NVIDIA H200 SXM data sheet, dense", 450e9, **_GPU),
    "v5e": Chip("tpu", 16 * GiB, 197e12, 0.819e12, "cloud.google.com/tpu/docs/v5e", 200e9),
    "v5p": Chip("tpu", 95 * GiB, 459e12, 2.765e12, "cloud.google.com/tpu/docs/v5p", 600e9),
    "v6e": Chip("tpu", 32 * GiB, 918e12, 1.64e12, "cloud.google.com/tpu/docs/v6e", 448e9),
}

# Chips -> the slice's name for the compiler: chips along each axis. One host drives at most four chips.
_SLICES_2D = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_SLICES_3D = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
SLICES = {"v5e": _SLICES_2D, "v6e": _SLICES_2D, "v5p": _SLICES_3D}


@dataclasses.dataclass(frozen=True)
class PlanTarget:
    """A number of chips of one kind."""

    name: str
    chip: Chip
    devices: int

    @property
    def topology(self) -> str:
        """The slice's name for the TPU compiler, such as "v5e:4x4"."""
        return f"{self.name}:{SLICES[self.name][self.devices]}"

    @property
    def text(self) -> str:
        """What `read_target` reads, such as "v5e:16"."""
        return f"{self.name}:{self.devices}"

    def __str__(self):
        return f"{self.devices} x {self.name}"


def read_target(text: str) -> PlanTarget:
    """The target that "a100-80gb:8" or "v5e:16" names: chips and how many, 1 if left out.

    Raises:
      ValueError: an unknown chip, not a number, or a TPU slice that does not exist.
    """
    name, _, count = text.partition(":")
    if name not in CHIPS:
        raise InputError(f"unknown target {text!r}: give CHIP:NUMBER with one of {', '.join(CHIPS)}")
    count = count or "1"
    if not count.isdigit() or int(count) < 1:
        raise InputError(f"target {text!r}: {count!r} is not a number of devices; use a positive integer")
    if name in SLICES and int(count) not in SLICES[name]:
        raise InputError(f"target {text!r}: {name} comes in slices of {', '.join(map(str, SLICES[name]))} chips")
    return PlanTarget(name, CHIPS[name], int(count))


def readable(number: float, unit: str) -> str:
    """1.5e12, "FLOP" -> "1.5 TFLOP"; bytes in powers of ten as well, as memory is sold."""
    if number <= 0:
        return f"0 {unit}"
    step = max(min(int(math.log10(number) // 3), 6), 0)
    return f"{number / 1000**step:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][step]}{unit}"
