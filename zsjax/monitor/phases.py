"""Time and memory by phase of a step.

A phase's peak on the host is the high-water mark of the process's resident memory, which Linux can set back: "5" in
/proc/self/clear_refs, about 0.1 ms with the reading, whatever the size of the process. Where it cannot be set back, the
metric is missing. Threads that work beside a phase, such as one that writes a checkpoint, count in it. What asks for the
process's highest memory otherwise (ru_maxrss, VmHWM) then finds that since the last phase began.

Accelerators give a high-water mark since the process began, which nothing sets back: a phase whose number is above that of
the phase before it needed the most so far.
"""

import contextlib
import pathlib
import time

import jax

from zsjax.types import Metric

_PARTS = {"rollout": "rollout", "score": "score", "update": "update", "evaluate": "evaluate", "checkpoint": "checkpoint"}
METRICS = (
    Metric("time/step", "all parts of a step", "seconds", 0.0, chart="Time", curve="step", read_by=("costs",)),
    *(Metric(f"time/{name}", f"seconds of a step's {label}", "seconds", 0.0, chart="Time", curve=label)
      for name, label in _PARTS.items()),
    Metric("time/*", "further parts of a step, or of a phase", "seconds", 0.0),
    *(Metric(f"memory/{name}", f"most resident memory of the process in a step's {label} (Linux)", "bytes", 0.0,
             chart="Memory", curve=label) for name, label in _PARTS.items()),
    *(Metric(f"memory/device_{name}", f"most memory in use on an accelerator since the start, after a step's {label}",
             "bytes", 0.0, chart="Memory of accelerators", curve=label) for name, label in _PARTS.items()),
    Metric("memory/*", "further parts of a step", "bytes", 0.0),
)


class Timer:
    """Seconds and peak memory by part: `with timer("rollout"): ...`; parts may lie within each other.

    `take()` returns {"time/rollout": seconds, "memory/rollout": bytes, "memory/device_rollout": bytes}, without what the
    platform does not give, and starts anew.
    """

    def __init__(self):
        self._taken: dict[str, float] = {}
        self._open: list[str] = []

    @contextlib.contextmanager
    def __call__(self, part: str):
        self._note_peak()
        self._open.append(part)
        start = time.perf_counter()
        try:
            yield
        finally:
            name = f"time/{part}"
            self._taken[name] = self._taken.get(name, 0.0) + time.perf_counter() - start
            self._note_peak()
            self._open.remove(part)
            if (peak := device_peak()) is not None:
                self._raise(f"memory/device_{part}", peak)

    def take(self) -> dict[str, float]:
        taken, self._taken = self._taken, {}
        return taken

    def _note_peak(self):
        """The peak since the last call belongs to all parts that are open."""
        if (peak := host_peak()) is not None:
            for part in self._open:
                self._raise(f"memory/{part}", peak)

    def _raise(self, name, value):
        self._taken[name] = max(self._taken.get(name, 0), value)


def host_peak() -> int | None:
    """Most resident memory of the process since the last call, in bytes; None where the platform cannot set it back."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:")), None)


def device_peak() -> int | None:
    """Most memory in use on one of this process's accelerators since it began, in bytes; None on CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices() if device.platform != "cpu"]
    return max((of["peak_bytes_in_use"] for of in stats if "peak_bytes_in_use" in of), default=None)
