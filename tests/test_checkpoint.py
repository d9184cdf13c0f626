import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.environment import one_device
from zsjax import supervised
from zsjax.config import Config, SupervisedConfig
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.monitor.recorder import Recorder
from zsjax.monitor.writer import Writer, read_jsonl
from zsjax.parallel import checkpoint, files
from zsjax.parallel.checkpoint import Checkpointer, CheckpointError, fingerprints
from zsjax.types import TrainState

ROOT = pathlib.Path(__file__).parents[1]


def make_state(seed=0):
    key = jax.random.key(seed)
    params = {"layers": [{"kernel": jax.random.normal(key, (8, 16)), "bias": jnp.ones(16, jnp.bfloat16)}] * 2}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1.0, 0.0, 9)))
    return TrainState(step=jnp.int32(seed), params=params, opt_state=optimizer.init(params),
                      key=jax.random.key_data(key))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_restores_every_bit(tmp_path):
    state = make_state()
    # Numbers whose bits a detour over decimal, another dtype or a canonical NaN would change.
    bits = jnp.array([0x7FC00001, 0x80000000, 1, 0x7F7FFFFF], jnp.uint32)
    state = state.replace(value_params={"odd": jax.lax.bitcast_convert_type(bits, jnp.float32)})
    with Checkpointer(tmp_path, keep=2, config_json='{"a": 1}') as checkpointer:
        assert checkpointer.restore(state) is None and checkpointer.extra() is None
        for step in (1, 2, 3):
            checkpointer.save(step, state.replace(step=jnp.int32(step)), {"data_position": step})
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        step, restored, extra = checkpointer.restore(jax.eval_shape(lambda: state))
        assert (step, extra, checkpointer.config()) == (3, {"data_position": 3}, '{"a": 1}')
        assert_same(restored, state.replace(step=jnp.int32(3)))
        assert checkpointer.restore(state, step=2)[2] == {"data_position": 2}
        with pytest.raises(CheckpointError, match="there is no checkpoint .*1"):
            checkpointer.restore(state, step=1)  # keep=2


def test_no_power_loss_leaves_a_checkpoint_without_its_metrics(tmp_path, monkeypatch):
    """metrics.jsonl is flushed with the step's line in it before each save: by training and by the supervised loop."""
    flushed, fsync, checkpoints = [], os.fsync, "checkpoints/train"

    def noting(descriptor):
        if os.fstat(descriptor).st_ino == os.stat(writer.path).st_ino:
            flushed.append((read_jsonl(writer.path)[-1]["step"], sorted(os.listdir(tmp_path / checkpoints))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    with Writer(tmp_path, quiet=True) as writer:
        recorder = Recorder(Config(), tmp_path, writer, None)
        for step in (1, 2):
            writer.write(step, {})
            recorder._checkpoints.save(step, make_state())
            recorder._checkpoints.wait()
        assert flushed == [(1, []), (2, ["1"])]
        flushed.clear()
        checkpoints = "tune"
        model = DecoderConfig(vocab_size=8, embed_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8)
        phase = SupervisedConfig(steps=2, batch_rows=2, max_tokens=8, logprob_chunk=8, checkpoint_every=1)
        batch, params = (np.ones((2, 8), np.int32), np.ones((2, 8), np.float32)), init_params(model, jax.random.key(0))
        supervised.fit(phase, model, params, lambda step: batch, writer=writer, stage="tune", directory=tmp_path / "tune")
        assert [step for step, _ in flushed] == [1, 2] and flushed[0][1] == []


@pytest.mark.parametrize("device", ["cpu", "gpu"])  # where it is a GPU, a save goes on in the background
def test_state_may_be_donated_after_save(tmp_path, monkeypatch, device):
    monkeypatch.setattr(checkpoint, "platform", lambda: device)
    spoil = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    state = {"x": jnp.arange(300_000.0)}
    want = np.array(state["x"])
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        jax.block_until_ready(spoil(state["x"]))
        checkpointer.wait()
        np.testing.assert_array_equal(checkpointer.restore({"x": jnp.zeros(300_000)})[1]["x"], want)


# The limit is the process's, and a test's process writes files of its own. It ends as a command line does.
FULL_DISK = """
import resource, sys
import jax
from zsjax.launch import leave
from zsjax.parallel import files
from zsjax.parallel.checkpoint import Checkpointer, CheckpointError
folder, room = sys.argv[1], int(sys.argv[2])
state = {"x": jax.random.normal(jax.random.key(0), (100, 1000))}
checkpointer = Checkpointer(folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    checkpointer.save(1, state)
    checkpointer.close()
except CheckpointError as error:
    print(repr(str(error)))
leave(9)
"""


@pytest.mark.parametrize("room", [100, 20_000])  # for JSON; for JSON but not for arrays
def test_a_full_disk_is_one_line(tmp_path, room):
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path / "run", str(room)], env=one_device(
        JAX_ENABLE_COMPILATION_CACHE="false"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr
    # While orbax's other thread still writes, its first thread may fail to clean up, which is then the reason.
    said = re.fullmatch(r"'cannot write a checkpoint to .*run \((.*)\); make room [^\n]*'\n", done.stdout)
    assert said and said[1] in ("File too large", "Directory not empty"), done.stdout
    files.remove_unfinished(tmp_path / "run")  # as the next start does
    state = {"x": jnp.ones((100, 1000))}
    with Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.restore(state) is None
        checkpointer.save(1, state)
    with Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.restore(state)[0] == 1


def test_a_deletion_that_a_kill_cut_short_is_finished(tmp_path):
    state = {"x": jnp.ones(3)}
    with Checkpointer(tmp_path, keep=9) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, state)
    (tmp_path / "1" / "about" / "metadata").unlink()
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.restore(state)[0] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_restores_onto_another_mesh(tmp_path):
    mesh = Mesh(np.array(jax.devices()).reshape(8), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jnp.arange(64.0).reshape(16, 4)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"x": x})
        _, state, _ = checkpointer.restore({"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)})
        assert state["x"].sharding == rows
        np.testing.assert_array_equal(state["x"], x)
        assert fingerprints(state) == fingerprints({"x": x})


def test_fingerprint_sees_any_change():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    for dtype in ("float32", "bfloat16", "int8", "bool"):
        array = jnp.array(x).astype(dtype)
        seen = {fingerprints({"x": array})["x"]["sum"]}
        for i in range(12):
            seen.add(fingerprints({"x": array.at[i // 4, i % 4].set(~array[i // 4, i % 4] if dtype == "bool" else 77)})
                     ["x"]["sum"])
        assert len(seen) == 13, dtype
    swapped = x[:, [1, 0, 2, 3]]
    assert fingerprints({"x": jnp.array(x)}) != fingerprints({"x": jnp.array(swapped)})
    for dtype in ("float32", "bfloat16", "float64", "uint8", "bool"):  # the same on host and device
        host = x.astype(jnp.bfloat16 if dtype == "bfloat16" else dtype)
        with jax.enable_x64(True):
            assert fingerprints({"x": host}) == fingerprints({"x": jnp.asarray(host)}), dtype


def test_another_tree_is_refused_by_name(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones((2, 3)), "b": jnp.ones(3)})
        for template, message in (({"w": jnp.ones((2, 4)), "b": jnp.ones(3)}, r"w: saved float32\[2,3\], needed .*2,4"),
                                  ({"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3)}, "w: saved float32"),
                                  ({"w": jnp.ones((2, 3))}, r"b: saved float32\[3\], needed not"),
                                  ({"w": jnp.ones((2, 3)), "b": jnp.ones(3), "c": jnp.ones(1)}, "c: saved not")):
            with pytest.raises(CheckpointError, match=message):
                checkpointer.restore(template)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax leaves futures behind
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_damage_is_noticed_and_an_older_state_found(tmp_path, how, caplog):
    state = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
    with Checkpointer(tmp_path / "whole") as checkpointer:
        checkpointer.save(1, state, {"data_position": 1})
        checkpointer.save(2, state, {"data_position": 2})
    files = [file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole" / "2").rglob("*") if file.is_file()]
    assert len(files) > 5
    detected = 0
    for file in files:
        shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
        data = bytearray((tmp_path / "hurt" / file).read_bytes())
        if how == "remove":
            (tmp_path / "hurt" / file).unlink()
        else:
            if how == "flip" and data:
                data[len(data) // 2] ^= 16
            (tmp_path / "hurt" / file).write_bytes(data if how == "flip" else data[:len(data) // 2])
        with Checkpointer(tmp_path / "hurt") as checkpointer:
            try:
                step, restored, extra = checkpointer.restore(state, step=2)
                assert_same(restored, state)  # a file that does not matter; never other numbers
                assert extra == {"data_position": 2}
            except CheckpointError as error:
                detected += 1
                assert str(tmp_path / "hurt" / "2") in str(error) and "go on from step 1" in str(error)
                assert "\n" not in str(error)
                caplog.clear()
                step, restored, extra = checkpointer.restore(state)
                assert (step, extra) == (1, {"data_position": 1})
                assert_same(restored, state)
                assert f"{tmp_path / 'hurt' / '2'}: " in caplog.text and "goes on from step 1" in caplog.text
                checkpointer.save(2, state)
                assert checkpointer.restore(state)[0] == 2 and (tmp_path / "hurt" / "damaged-2").is_dir()
        shutil.rmtree(tmp_path / "hurt")
    assert detected >= 3


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_save_does_not_hold_up_the_steps(tmp_path, monkeypatch, device):
    """`save` returns while 64 MB are still being written, in one of three attempts at least; on a CPU in none."""
    monkeypatch.setattr(checkpoint, "platform", lambda: device)
    state = {f"w{i}": jnp.ones((512, 1024)) for i in range(32)}
    still_writing = []
    with Checkpointer(tmp_path) as checkpointer:
        for step in range(3):
            checkpointer.wait()
            checkpointer.save(step, state)
            still_writing.append(checkpointer._manager.is_saving_in_progress())
    assert any(still_writing) == (device == "gpu")


def test_a_state_is_read_into_the_memory_of_the_one_it_replaces(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(state, donate=True) is None
        checkpointer.save(1, state)
        _, kept, _ = checkpointer.restore(state)
        _, restored, _ = checkpointer.restore(state, donate=True)
        assert all(x.is_deleted() for x in jax.tree.leaves(state) if isinstance(x, jax.Array))
        assert_same(restored, kept)


def test_damage_is_noticed_after_the_state_was_given_up(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.save(2, state)
        _, kept, _ = checkpointer.restore(state)
        (tmp_path / "2" / "about" / "metadata").write_text("{")
        step, restored, _ = checkpointer.restore(state, donate=True)
        assert step == 1 and (tmp_path / "damaged-2").is_dir()
        assert_same(restored, kept)


def test_kill_at_any_moment(tmp_path):
    """SIGKILL while checkpoints are written one after another: the last complete one is there and whole, every time."""
    code = textwrap.dedent(f"""
        import jax, jax.numpy as jnp
        from zsjax.parallel import checkpoint
        from zsjax.parallel.checkpoint import Checkpointer
        checkpoint.platform = lambda: "gpu"  # saves in the background
        add = jax.jit(lambda x: x + 1, donate_argnums=0)
        checkpointer = Checkpointer({str(tmp_path)!r}, keep=2)
        restored = checkpointer.restore({{"x": jnp.zeros((200, 200))}})
        step, state, extra = restored or (0, {{"x": jnp.zeros((200, 200))}}, {{"n": 0}})
        assert (state["x"] == step).all() and extra == {{"n": step}}
        print(step, flush=True)
        while True:
            step, state = step + 1, {{"x": add(state["x"])}}
            checkpointer.save(step, state, {{"n": step}})
            print(step, flush=True)
    """)
    began, killed = [], []
    for attempt in range(4):
        child = subprocess.Popen([sys.executable, "-c", code], env=one_device(), stdout=subprocess.PIPE, text=True)
        began.append(int(child.stdout.readline() or -1))
        for _ in range(4):  # a save returns when the one before it is complete
            killed.append(int(child.stdout.readline() or -1))
        time.sleep(0.013 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert began[0] == 0 and -1 not in killed
    assert all(now >= last - 1 for now, last in zip(began[1:], killed[3::4], strict=False)), (began, killed)
