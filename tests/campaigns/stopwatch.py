"""How long a process takes after a moment: by the clock, in CPU time, and without the time in which it had no core."""

import os
import pathlib
import time


class Stopwatch:
    """Begins when it is made; `look` reads the clocks, and must be called now and then while the process lives."""

    def __init__(self, pid: int):
        self._tasks = pathlib.Path(f"/proc/{pid}/task")
        self._start, self._begun, self._last = time.monotonic(), {}, {}
        self._begun = self._read()
        self.look()

    def look(self) -> None:
        self._last |= self._read()
        self.wall = time.monotonic() - self._start

    @property
    def cpu(self) -> float:
        """Seconds that the process ran, of all its threads, as of the last look."""
        return sum(ran - self._begun.get(task, (0, 0))[0] for task, (ran, _) in self._last.items()) / 1e9

    @property
    def waited(self) -> float:
        """Seconds in which a thread of the process could have run and other work had the cores: the most of one thread."""
        return max((waited - self._begun.get(task, (0, 0))[1] for task, (_, waited) in self._last.items()), default=0) / 1e9

    @property
    def own(self) -> float:
        """Seconds by the clock without `waited`: about what an idle machine would have shown."""
        return self.wall - self.waited

    def _read(self) -> dict[str, tuple[int, int]]:
        """Thread -> (nanoseconds on a core, nanoseconds ready without one). Empty when the process has ended."""
        found = {}
        for task in os.listdir(self._tasks) if self._tasks.is_dir() else ():
            try:
                ran, waited, _ = (self._tasks / task / "schedstat").read_text().split()
            except (OSError, ValueError):  # it has ended
                continue
            found[task] = int(ran), int(waited)
        return found
