"""What a process holds, second by second: memory, arrays, and the files of its run; and what a long run must show."""

import collections
import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import threading

# Metrics -> the share of the last steps in which they are above 0, at least.
WORK = {"searches": 0.5, "grad_norm": 0.5, "rerank/loss": 0.25, "groups_with_signal": 0.1}
GROW = {"metrics.jsonl": 4096, "tensorboard": 8192}  # what grows with the steps -> bytes a step at most
# Of what it was: the best policy is there twice while it is replaced, and the last one comes at the end. A few bytes more.
MOST, SPARE = {"models": 3.0}, 1 << 16


def count_and_launch(out: str, workdir: str, *arguments: str) -> int:
    """`zsjax.launch` with these arguments; every second a line of `out` says what is held. The counter's error is raised."""
    from zsjax import launch

    done = threading.Event()

    def count():
        with open(out, "a") as file:
            while not done.wait(1.0):
                file.write(json.dumps({"process": os.getpid(), **held(), "files": file_sizes(workdir)}) + "\n")
                file.flush()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        counting = pool.submit(count)
        try:
            return launch.main(list(arguments))
        finally:
            done.set()
            counting.result()


def held() -> dict[str, int]:
    """{"resident": bytes of the process, "arrays": jax arrays that live, "array_bytes", "device": bytes in use on the first
    accelerator, if there is one}.

    No array outlives the call: a list of them that is kept until the next count keeps them, and their number only grows.
    """
    import jax

    arrays = jax.live_arrays()
    resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"resident": resident, "arrays": len(arrays), "array_bytes": sum(array.nbytes for array in arrays),
            **({"device": stats["bytes_in_use"]} if "bytes_in_use" in stats else {})}


def file_sizes(workdir) -> dict[str, int]:
    """Bytes of a run's files, by the first part of their path."""
    sizes = collections.Counter()
    for folder, _, names in os.walk(workdir):
        for name in names:
            path = pathlib.Path(folder, name)
            with contextlib.suppress(FileNotFoundError):  # just removed
                sizes[path.relative_to(workdir).parts[0]] += path.stat().st_size
    return dict(sizes)


def late_compilations(lines, starts, every) -> list[int]:
    """The steps whose programs came late. A process compiles in its first step, in its first evaluation, in the first one
    in which the policy searches, and in the step after its first checkpoint, whose line has the checkpoint's program.
    Programs of the persistent cache count as well."""
    firsts = [(start // every + 1) * every for start in starts]
    allowed = {start + 1 for start in starts} | {step + after for step in firsts for after in (0, 1)}
    searched = [line["step"] for line in lines if line.get("eval/searches")]
    allowed |= {next((step for step in searched if step > start), 0) for start in starts}
    return [line["step"] for line in lines if line["step"] not in allowed and line["compile/step"] + line["compile/cached"]]


def real_work(lines) -> dict:
    """How many of the last quarter's steps searched and learned; fails where less than WORK did."""
    last = lines[3 * len(lines) // 4:]
    found = {name: sum(line[name] > 0 for line in last) for name in WORK}
    few = {name: number for name, number in found.items() if number <= WORK[name] * len(last)}
    assert not few, f"of the last {len(last)} steps only {json.dumps(few)} were above 0"
    return {f"steps_with_{name}": number for name, number in found.items()}


def memory_and_files(rows, lines) -> dict:
    """What the process that lasted longest held in the second and in the last quarter of its time after the last
    compilation, whose program takes memory; fails where it grew."""
    processes = collections.defaultdict(list)
    for row in rows:
        processes[row["process"]].append(row)
    longest = max(processes.values(), key=len)
    seconds = sum(line["time/step"] for line in lines)
    assert len(rows) > seconds / 2, f"{len(rows)} counts in {seconds:.0f} s of steps"
    assert len(longest) > len(rows) / 2, "no process lasted for half of the run; remove its folder and start anew"
    compiled = max((i for i, line in enumerate(lines) if line.get("compile/step") or line.get("compile/cached")), default=0)
    before = next(i for i, row in enumerate(rows) if row["process"] == longest[0]["process"])
    settled = longest[max(len(rows) * compiled // len(lines) - before, 0):]
    assert len(settled) > len(longest) / 4, f"something was compiled in step {compiled + 1} of {len(lines)}"
    quarter = len(settled) // 4
    parts = {"second": settled[quarter:2 * quarter], "last": settled[3 * quarter:]}
    # Single counts fall into an evaluation, which holds half as many arrays more; a tenth of them is left out.
    of_counts = {"resident": max, "device": max, "arrays": ninth_tenth, "array_bytes": ninth_tenth}
    kinds = {"resident": 1.05, "arrays": 1.02, "array_bytes": 1.02, **({"device": 1.02} if "device" in rows[0] else {})}
    found = {f"{kind}_{name}": of_counts[kind]([row[kind] for row in part])
             for name, part in parts.items() for kind in kinds}
    grew = [kind for kind, bound in kinds.items() if found[f"{kind}_last"] > bound * found[f"{kind}_second"]]
    assert not grew, f"{', '.join(grew)} grew: {json.dumps(found)}"
    sizes = {name: max_sizes(part) for name, part in parts.items()}
    before = sizes["second"]
    grew = {name: [before.get(name, 0), size] for name, size in sizes["last"].items()
            if size > (GROW[name] * len(lines) if name in GROW else SPARE + MOST.get(name, 1.25) * before.get(name, 0))}
    assert not grew, f"files grew: {json.dumps(grew)}"
    return found | {f"bytes_{name}": size for name, size in sizes["last"].items()}


def ninth_tenth(values):
    """The least of the values that nine tenths of them do not exceed."""
    return sorted(values)[math.ceil(0.9 * len(values)) - 1]


def max_sizes(rows) -> dict[str, int]:
    """The largest size of each part of the run's files."""
    names = {name for row in rows for name in row["files"]}
    return {name: max(row["files"].get(name, 0) for row in rows) for name in names}
