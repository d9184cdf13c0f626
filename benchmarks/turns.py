"""Programs that run in turns, each in a process of its own with its own libraries, threads and preloads.

The driver starts a `Worker` for each and sends it over a pipe what to prepare and when to run. A worker is a script that
ends in `serve`. One worker runs at a time. This module imports the standard library only.
"""

import json
import os
import subprocess
import sys
import time

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
XLA_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class WorkerFailed(RuntimeError):
    """The worker's process ended, or answered with an error."""


class Worker:
    """A script that runs in its own process."""

    def __init__(self, name: str, script, options: dict, *, python=sys.executable, env=None):
        flags = f"{os.environ.get('XLA_FLAGS', '')} {XLA_ONE_THREAD}".strip()  # no effect on a GPU
        env = {**os.environ, **ONE_THREAD, "XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(env or {})}
        self.name = name
        self._process = subprocess.Popen([python, str(script), json.dumps(options)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True, env=env)
        self.facts = self._answer()

    def prepare(self, workload: dict) -> dict:
        """Builds a workload and runs it once, or as much of it as compiles and warms up."""
        return self._ask({"prepare": workload})

    def run(self) -> dict:
        """Runs it: {"cpu_s", "wall_s", and what the workload tells}."""
        return self._ask({"run": True})

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, message):
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with {self._process.wait(timeout=60)}"}
        if "error" in answer:
            raise WorkerFailed(f"{self.name}: {answer['error']}")
        return answer


def serve(facts: dict, prepare):
    """A worker's main loop.

    Args:
      facts: versions and the device, the first message to the driver.
      prepare: workload -> a function that runs it and returns a dict. Its first work is the warm-up.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of libraries go to stderr

    def say(message):
        out.write(json.dumps(message) + "\n")
        out.flush()

    def measured(call):
        wall, cpu = time.perf_counter(), time.process_time()
        found = call()
        return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, **(found or {})}

    say(facts)
    run = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "prepare" in message:
                workload, made = message["prepare"], {}
                found = measured(lambda workload=workload, made=made: made.update(run=prepare(workload)))
                run = made["run"]
                say(found)
            else:
                say({**measured(run), "peak_mb": _peak_mb()})
        except Exception as error:  # the driver names the worker
            import traceback
            traceback.print_exc()
            say({"error": f"{type(error).__name__}: {error}"})


def _peak_mb() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
