"""What one GPU reaches, in one process: decoding against the bandwidth, training against the speed of products.

    python benchmarks/gpu.py [--seconds 160] [--parts attention decode training update] [--shapes 3b 0.5b 0.6b] [--toy]

Programs are compiled in threads, the most telling ones first, and timed when all are compiled or --seconds are nearly over.
A line of JSON is printed as soon as it is known; a part that fails prints its error. Models have the published shapes but
few layers, because most of the time goes to the compiler: a layer takes the difference between two depths over that of their
layers. Beside each time stands what `zsjax.plan.program` predicts from the compiled program at the bandwidth and the
product rate measured in the same run.
"""

import argparse
import concurrent.futures
import dataclasses
import glob
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from gpu_cases import attention_cases, decode_cases, random_array, training_cases, update_cases
from rollout import SHAPES

from zsjax.plan.program import read_program
from zsjax.plan.targets import CHIPS

LOOP = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE"
BEGAN, OUTPUTS = time.perf_counter(), {}
CHOICES = {"default": {}, "none": {"xla_gpu_enable_command_buffer": ""}, "loop": {"xla_gpu_enable_command_buffer": LOOP}}


def say(**line):
    print(json.dumps({"at_s": round(time.perf_counter() - BEGAN, 1)} | line), flush=True)


def machine():
    """A chip as measured: bytes/s of a copy, read and written, and FLOP/s of a product of random bf16 numbers."""
    n, size = (8192, 2**28) if jax.default_backend() != "cpu" else (512, 2**22)
    x, y = random_array((n, n), jnp.bfloat16, 1.0), jnp.ones(size, jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x))
    add = jax.jit(lambda y: y + 1, donate_argnums=0)

    def rate(call, work):
        """The best of a few, ten calls each, so that their launches overlap with what runs."""
        best = 0.0
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(10):
                out = call()
            out.block_until_ready()
            best = max(best, 10 * work / (time.perf_counter() - start))
        return best

    def copy():
        nonlocal y
        y = add(y)
        return y

    flops, bandwidth = rate(lambda: product(x), 2 * n**3), rate(copy, 8 * size)
    say(measured="limits", tflops=round(flops / 1e12, 1), copy_gb_per_s=round(bandwidth / 1e9, 1))
    return dataclasses.replace(CHIPS["h100"], flops=flops, bandwidth=bandwidth, reached=1.0)


def compile_case(case):
    start = time.perf_counter()
    try:
        case.compiled = case.lowered.compile(CHOICES[case.buffers] or None)
        say(compiled=case.name, compile_s=round(time.perf_counter() - start, 1))
    except Exception as error:
        say(failed=case.name, error=str(error).splitlines()[0][:300])


def measure(case, chip, repeats=5):
    line = dict(case.name)
    run = case.call(case.compiled)
    out = run()
    if line["part"] == "attention":  # both kernels give the same
        key = (line["rows"], line["capacity"])
        other = OUTPUTS.setdefault(key, np.asarray(out, np.float32))
        line["difference"] = float(np.abs(np.asarray(out, np.float32) - other).max() / np.abs(other).max())
    if line["part"] == "update":
        line["loss"], line["nonfinite"] = out
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) / case.steps)
    seconds = sorted(times)[repeats // 2]
    line |= {"ms": round(1e3 * seconds, 4), "spread_ms": [round(1e3 * min(times), 4), round(1e3 * max(times), 4)]}
    try:
        program = read_program(case.compiled.as_text())
        phases = [(program.loops[0], 1)] if case.steps > 1 else [
            (phase, phase.turns or case.turns) for phase in program.phases]
        line |= {"kernels": sum(turns * len(phase.kernels) for phase, turns in phases),
                 "predicted_gb": round(sum(turns * phase.bytes for phase, turns in phases) / 1e9, 3),
                 "predicted_ms": round(1e3 * sum(turns * phase.seconds(chip) for phase, turns in phases), 4)}
    except Exception as error:
        line |= {"unread": repr(error)[:200]}
    say(**line, **case.facts(seconds, chip))
    return run, seconds


def profile(case, run):
    """Prints the microseconds of each kernel in one turn, summed by name."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        path, = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
        totals = {}
        for plane in data.planes:
            if "GPU" not in plane.name:
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    count, spent = totals.get(event.name, (0, 0.0))
                    totals[event.name] = count + 1, spent + event.duration_ns
    rows = sorted(totals.items(), key=lambda item: -item[1][1])[:45]
    say(profile=case.name, us_a_step={name[:60]: [count, round(ns / case.steps / 1e3, 2)] for name, (count, ns) in rows})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=160)
    parser.add_argument("--parts", nargs="*", default=["decode", "update", "attention", "training"])
    parser.add_argument("--shapes", nargs="*", default=["3b", "0.5b", "0.6b"], choices=SHAPES,
                        help="of decode: all cases of the first, fewer of the others")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    say(device=jax.devices()[0].device_kind, jax=jax.__version__, platform=jax.default_backend())
    chip = machine()
    shapes = ["toy"] if options.toy else options.shapes
    makers = {"decode": lambda: itertools.chain.from_iterable(decode_cases(shape, options.toy, short=shape != shapes[0])
                                                              for shape in shapes),
              "attention": lambda: attention_cases(options.toy), "training": lambda: training_cases(options.toy),
              "update": lambda: update_cases(options.toy)}
    threads, cases, jobs = concurrent.futures.ThreadPoolExecutor(12), [], []
    for part in options.parts:
        try:
            for case in makers[part]():
                case.lowered = case.lower()
                cases.append(case)
                jobs.append(threads.submit(compile_case, case))
        except Exception as error:
            say(failed=part, error=repr(error)[:500])
        say(lowered=part)

    def left():
        return options.seconds - (time.perf_counter() - BEGAN)

    concurrent.futures.wait(jobs, timeout=max(left() - 30, 1))
    say(compiled=sum(case.compiled is not None for case in cases), of=len(cases))
    for case in cases:
        if case.compiled is None or left() < 3:
            say(left_out=case.name)
            continue
        try:
            run, _ = measure(case, chip)
            if case.name["part"] == "decode" and case.name["rows"] in (64, 4) and case.buffers == "default" and left() > 10:
                profile(case, run)
        except Exception as error:
            say(failed=case.name, error=repr(error)[:500])
    say(done=True)
    sys.stdout.flush()
    os._exit(0)  # threads may still compile


if __name__ == "__main__":
    main()
