"""Host memory and time of loading a checkpoint: a random one of about 2 GB, or any folder.

    python benchmarks/load.py [--checkpoint FOLDER] [--dtype float32] [--folder /tmp]

The load runs in a process of its own. On CPU the parameters are in host memory too. "extra" is the peak of the resident
set (mapped pages of the file included) minus the memory resident before and minus the parameters.
Needs jax, flax, optax, numpy and safetensors.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))


def resident() -> dict[str, int]:
    """Bytes: now and peak, anonymous and mapped from files."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines
            if line.startswith(("VmHWM", "VmRSS", "RssAnon"))}


def load(folder: str, dtype: str | None):
    import jax

    from zsjax.models import load_hf

    jax.block_until_ready(jax.numpy.zeros(1))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, anonymous, done = resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            anonymous[0] = max(anonymous[0], resident()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    _, params = load_hf(folder, dtype=dtype)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    leaves = jax.tree.leaves(params)
    size = sum(x.nbytes for x in leaves)
    print(json.dumps({
        "parameters": sum(x.size for x in leaves), "dtype": str(leaves[0].dtype), "model_mb": size >> 20,
        "largest_tensor_mb": max(x.nbytes for x in leaves) >> 20,
        "extra_peak_mb": resident()["VmHWM"] - before["VmRSS"] - size >> 20,
        "extra_anonymous_peak_mb": anonymous[0] - before["RssAnon"] - size >> 20, "seconds": round(seconds, 2)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--dtype")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the random checkpoint goes")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        load(options.checkpoint, options.dtype)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        checkpoint = options.checkpoint
        if checkpoint is None:
            import jax

            from zsjax.models import init_params, num_params, save_hf
            from zsjax.models.families import PRESETS

            config = PRESETS["Llama-3.2-1B"]
            start = time.perf_counter()
            save_hf(pathlib.Path(temporary) / "model", config, init_params(config, jax.random.key(0), "bfloat16"))
            print(f"wrote {num_params(config) * 2 >> 20} MB in {time.perf_counter() - start:.1f} s", file=sys.stderr)
            checkpoint = f"{temporary}/model"
        extra = ["--dtype", options.dtype] if options.dtype else []
        subprocess.run([sys.executable, __file__, "--child", "--checkpoint", checkpoint, *extra], check=True)


if __name__ == "__main__":
    main()
