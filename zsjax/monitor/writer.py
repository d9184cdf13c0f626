"""Metrics: the writer that puts numbers into files and onto the screen.

A run's numbers live in `metrics.jsonl`, one JSON object a line: {"stage": "train", "step": 12, "reward": 0.51, ...},
flushed at once; TensorBoard events are a second copy. `step` counts finished steps: the line of step n describes the
n-th step, and a checkpoint of step n goes with the lines up to n. Names that start with "time/" (seconds), "memory/"
(bytes), "speed/" (per second) or "compile/" (programs) depend on the machine and the process. All others repeat exactly
when a run is repeated or resumed on CPU.
"""

import contextlib
import json
import math
import pathlib
import sys
import time
from typing import Any

import numpy as np

from zsjax.errors import InputError, json_value, printable, reading, reason_of, writing
from zsjax.monitor.tensorboard import TensorBoardEvents
from zsjax.parallel.files import flush, write_jsonl
from zsjax.types import Metric

METRICS = (
    Metric("speed/tokens_per_second", "tokens of the step's episodes over the time of rollout, score and update",
           "tokens per second", 0.0, chart="Speed", curve="tokens/s"),
)
WALL_TIME = ("time/", "memory/", "speed/", "compile/")  # prefixes of metrics that no two runs share


def without_wall_time(line: dict) -> dict:
    """The part of a metrics line that repeats exactly in a repeated run."""
    # Searches beside the rollout change the number of its steps, and so the occupancy, but not its episodes.
    return {name: value for name, value in line.items()
            if not name.removeprefix("eval/").startswith((*WALL_TIME, "occupancy/"))}


def read_jsonl(path) -> list[dict]:
    """The objects of a .jsonl file, [] if there is no file. A last line that a kill cut in half is left out.

    Raises:
      InputError: another line is not JSON; the message names file and line.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    with reading(path):
        lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_value(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: the write was cut
                break
            raise InputError(f"{path}, line {number} is not JSON: {reason_of(error)}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: a {type(row).__name__} is not an object; remove the line")
        rows.append(row)
    return rows


def read_lines(path) -> list[dict]:
    """The lines of metrics.jsonl. Raises InputError as `read_jsonl`, and for a line without stage and step."""
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("stage"), str) or type(row.get("step")) is not int:
            raise InputError(f"{path}, row {number}: the field stage or step is missing; correct or remove the row")
    return rows


class Writer:
    """Writes a run's metrics into files and shows them: by a progress bar on a terminal, else by one line a step."""

    def __init__(self, workdir=None, *, show: tuple[str, ...] = (), tensorboard: bool = True, console=None,
                 quiet: bool = False, trackers=None):
        """Opens `workdir` for appending.

        Args:
          workdir: the run's folder; None only shows.
          show: names shown beside the bar; (): those of `SHOWN`.
          tensorboard: also write TensorBoard events into workdir/tensorboard/<phase>.
          console: a rich.console.Console; None is stdout.
          quiet: shows nothing.
          trackers: None, or `zsjax.monitor.trackers.Trackers`, which get every line and are closed with this.
        """
        self.workdir = None if workdir is None else pathlib.Path(workdir)
        self._show = show or SHOWN
        self._tensorboard: dict[str, Any] | None = {} if tensorboard and workdir is not None else None
        self._purge: dict[str, int] = {}
        self._console, self._trackers = console or _console(quiet), trackers
        self._bar = self._task = None
        self._totals: dict[str, int] = {}
        self._file = None
        if self.workdir is not None:
            with writing(self.path):
                self.workdir.mkdir(parents=True, exist_ok=True)
                _drop_half_line(self.path)
                self._file = open(self.path, "ab")

    @property
    def path(self) -> pathlib.Path:
        return self.workdir / "metrics.jsonl"

    def write(self, step: int, metrics: dict, phase: str = "train", show: bool = True):
        """Appends one line, which outlives the process; `flush` makes it outlive the machine.

        Args:
          step: steps done in this phase.
          metrics: name -> number (Python, numpy or jax scalar), string, bool or None, or a list of those.
          phase: the stage, e.g. "pretrain" or "train"; written as "stage".
          show: whether the step also moves the bar or prints a line.
        """
        line = {"stage": phase, "step": int(step), **{name: _plain(value) for name, value in metrics.items()}}
        if self._file is not None:
            # One write call a line: a kill leaves whole lines and at most one half.
            with writing(self.path):
                self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
                self._file.flush()
        if self._tensorboard is not None:
            self._events(phase).add_scalars_of(line)
        if self._trackers is not None:
            self._trackers.write(line)
        if show:
            self._display(phase, int(step), line)

    def flush(self):
        """Returns when all lines are on the disk: no power loss leaves a checkpoint without them."""
        if self._file is not None:
            with writing(self.path):
                flush(self.path)
                flush(self.workdir)

    def truncate(self, stage: str, step: int):
        """Removes the lines of `stage` after `step`, which a resumed run writes again. Other stages stay."""
        if self._file is None:
            return
        self._file.close()
        rows = read_lines(self.path)
        kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
        if len(kept) != len(rows):
            write_jsonl(self.path, kept)
        self._file = open(self.path, "ab")
        self._purge[stage] = step + 1

    @contextlib.contextmanager
    def progress(self, phase: str, total: int, done: int = 0):
        """A bar that `write(..., phase=phase)` moves, from `done` to `total` steps."""
        self._totals[phase] = total
        with self._open_bar(phase, total, done):
            yield self

    @contextlib.contextmanager
    def track(self, label: str, total: int):
        """A bar for work without metrics: yields `advance(n=1)`. Off a terminal: a line every ten seconds, and one at
        the end where it took longer than three."""
        done = 0
        start = last = time.monotonic()
        with self._open_bar(label, total, 0) as bar:
            def advance(n: int = 1):
                nonlocal done, last
                done += n
                if bar is not None:
                    bar.update(self._task, completed=done)
                elif time.monotonic() - last > 10 and done < total:
                    last = time.monotonic()
                    self.note(f"{label}  {done}/{total}")

            yield advance
        if bar is None and time.monotonic() - start > 3:
            self.note(f"{label}  {done}/{total}  {time.monotonic() - start:.1f} s")

    def note(self, text: str):
        """Prints a line, above the bar if there is one. Control characters show as signs."""
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        sys.stdout.flush()

    def close(self):
        for events in (self._tensorboard or {}).values():
            events.close()
        if self._trackers is not None:
            self._trackers.close()
        if self._file is not None:
            with writing(self.path):
                self._file.close()
        self._file = self._tensorboard = self._trackers = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _events(self, phase):
        if phase not in self._tensorboard:
            self._tensorboard[phase] = TensorBoardEvents(self.workdir / "tensorboard" / phase, self._purge.get(phase))
        return self._tensorboard[phase]

    @contextlib.contextmanager
    def _open_bar(self, label, total, done):
        if not self._console.is_terminal or self._bar is not None:  # one bar at a time
            yield None
            return
        from rich import progress

        columns = (progress.TextColumn("{task.description}"), progress.BarColumn(20), progress.MofNCompleteColumn(),
                   progress.TimeRemainingColumn(), progress.TextColumn("{task.fields[shown]}", markup=False))
        with progress.Progress(*columns, console=self._console) as self._bar:
            self._task = self._bar.add_task(label, total=total, completed=done, shown="")
            try:
                yield self._bar
            finally:
                self._bar = self._task = None

    def _display(self, phase, step, line):
        shown = "  ".join(f"{_without_prefix(name)} {_short(line[name])}" for name in self._show if name in line)
        for label, *names in () if self._show is not SHOWN else SHOWN_TOGETHER:
            if values := [_short(line[name]) for name in names if name in line]:
                shown += f"  {label} {'/'.join(values)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, shown=printable(shown))
        else:
            total = f"/{self._totals[phase]}" if phase in self._totals else ""
            self.note(f"{phase} {step}{total}  {shown}")


# Metrics that are shown, in this order, where the line has them.
SHOWN = ("loss", "reward", "em", "f1", "noise", "searches", "on_path", "response_tokens", "kl", "entropy", "grad_norm",
         "sampler_gap_mean", "eval/em", "eval/f1", "speed/tokens_per_second", "time/step")
# After them: labels, each with its metrics, separated by slashes.
SHOWN_TOGETHER = (
    ("occupancy", "occupancy/policy", "occupancy/simulator"),
    ("wrote/s", "speed/policy_tokens_per_second", "speed/document_tokens_per_second"),
    ("prefill", "prefill/policy", "prefill/simulator"),
    ("bandwidth", "speed/bandwidth_share"),
    ("rollout/score/update s", "time/rollout", "time/score", "time/update"),
    ("compiled", "compile/step"),
)


def _plain(value):
    """A JSON value. float32 becomes the float64 of the same value, which reads back exactly; NaN becomes null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    value = np.asarray(value)
    if value.ndim:
        return [_plain(v) for v in value]
    value = value.item() if value.dtype.kind in "biu" else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)  # strict JSON has neither NaN nor infinity
    return value


def _without_prefix(name):
    return name.partition("/")[2] if name.startswith(WALL_TIME) else name


def _short(value):
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:.1e}" if abs(value) < 1 else f"{value:.3g}"


def _console(quiet):
    from rich.console import Console

    return Console(file=sys.stdout, quiet=quiet)


def _drop_half_line(path):
    """Removes a last line without its newline, which a kill left."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        text = file.read()
        if text and not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)
