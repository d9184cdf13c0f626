"""What the long run counts, and what it takes for growth, late programs and idle steps."""

import jax.numpy as jnp
import pytest

from tests.campaigns.counted import WORK, file_sizes, held, late_compilations, memory_and_files, real_work


def test_counting_arrays_keeps_none():
    def after_a_step(step):
        arrays = [jnp.full(3, step + i) for i in range(5)]  # a step's own arrays, alive while they are counted
        found = held()["arrays"]
        del arrays
        return found

    assert len({after_a_step(step) for step in range(4)}) == 1


def test_the_sizes_of_a_runs_files(tmp_path):
    (tmp_path / "models" / "policy").mkdir(parents=True)
    for name, size in (("metrics.jsonl", 5), ("models/policy/a", 2), ("models/b", 1)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert file_sizes(tmp_path) == {"metrics.jsonl": 5, "models": 3}


def test_programs_that_come_late_are_named():
    lines = [{"step": step, "compile/step": int(step == 1), "compile/cached": int(step in (11, 20, 21, 30))}
             for step in range(1, 41)]
    assert late_compilations(lines, [0], 10) == [20, 21, 30]
    assert late_compilations(lines, [0, 19], 10) == [30]  # a process that went on at step 19
    for line in lines[9::10]:
        line["eval/searches"] = 0.5 * (line["step"] > 10)  # none in the first evaluation
    assert late_compilations(lines, [0], 10) == [21, 30]
    assert late_compilations(lines, [0, 19], 10) == [30]


def test_a_run_that_stopped_searching_or_learning_is_no_long_run():
    lines = [dict.fromkeys(WORK, 0.5)] * 40
    assert real_work(lines)["steps_with_grad_norm"] == 10
    for name, share in WORK.items():
        some = [{**line, name: 0.0} for line in lines[:10 - int(10 * share)]]
        with pytest.raises(AssertionError, match=f'{{"{name}": {int(10 * share)}}}'):
            real_work([*lines[:30], *some, *lines[:int(10 * share)]])


def test_memory_and_files_that_grow_are_named():
    lines = [{"time/step": 1.0}] * 100

    def rows(seconds=100, process=1, accelerator=False, **growth):
        of = {"resident": 1000, "arrays": 50, "array_bytes": 600, **({"device": 90} if accelerator else {})}
        files = {"checkpoints": 1 << 20, "metrics.jsonl": 100}
        return [{"process": process, **{name: size * (1 + growth.get(name, 0) * i / seconds) for name, size in of.items()},
                 "files": {name: size * (1 + growth.get(name, 0) * i / seconds) for name, size in files.items()}}
                for i in range(seconds)]

    found = memory_and_files(rows(**{"metrics.jsonl": 9}), lines)
    assert found["arrays_second"] == found["arrays_last"] == 50 and found["bytes_checkpoints"] == 1 << 20
    memory_and_files(rows(10, process=2, arrays=99) + rows(), lines)  # a short part of the run before it was cut off
    late = [{"time/step": 1.0, "compile/step": int(step == 60)} for step in range(100)]
    program = [row | {"resident": 1000 + 500 * (i > 60)} for i, row in enumerate(rows())]
    assert memory_and_files(program, late)["resident_second"] == 1500
    with pytest.raises(AssertionError, match="resident grew"):
        memory_and_files(program, lines)
    with pytest.raises(AssertionError, match="compiled in step 91 of 100"):
        memory_and_files(program, [{"time/step": 1.0, "compile/step": int(step == 90)} for step in range(100)])
    often = rows()
    for row in often[80:82]:
        row["arrays"] = 80  # counts that fell into an evaluation
    assert memory_and_files(often, lines)["arrays_last"] == 50
    for grown in ("resident", "arrays", "array_bytes", "device"):
        with pytest.raises(AssertionError, match=f"^{grown} grew"):
            memory_and_files(rows(accelerator=True, **{grown: 1}), lines)
    with pytest.raises(AssertionError, match='^files grew: {"checkpoints"'):
        memory_and_files(rows(checkpoints=1), lines)
    with pytest.raises(AssertionError, match="40 counts in 100 s"):
        memory_and_files(rows(40), lines)
    with pytest.raises(AssertionError, match="no process lasted"):
        memory_and_files(rows() + rows(process=2), lines)
