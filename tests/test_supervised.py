"""The supervised loop resumes exactly, uses the weights, and stops at a loss that is not finite; pretraining is exact."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.signalled import signal_at_close
from zsjax import supervised
from zsjax.config import Config, LoraConfig, ModelConfig, OptimizerConfig, SupervisedConfig, UserError
from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.errors import NonFiniteUpdate
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.monitor.writer import Writer, read_jsonl, without_wall_time
from zsjax.parallel import stops
from zsjax.parallel.mesh import make_mesh
from zsjax.tiny_world.pretrain_policy import pretrain_policy

MODEL = DecoderConfig(vocab_size=40, embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
PHASE = SupervisedConfig(steps=6, batch_rows=4, max_tokens=12, checkpoint_every=2, optimizer=OptimizerConfig(
    learning_rate=1e-2, schedule="cosine", warmup_steps=2))


def batches(step):
    rng = np.random.default_rng([7, step])
    weights = (rng.random((4, 12)) < 0.5).astype(np.float32)
    weights[:, 9:] = 0
    return rng.integers(1, 40, (4, 12)).astype(np.int32), weights


def train(directory, batches=batches, phase=PHASE, params=None, **options):
    params = init_params(MODEL, jax.random.key(0)) if params is None else params
    with Writer(directory, tensorboard=False) as writer:
        return supervised.fit(phase, MODEL, params, batches, writer=writer, stage="tune", directory=directory / "ckpt",
                                **options)


def lines(directory):
    return [without_wall_time(line) for line in read_jsonl(directory / "metrics.jsonl")]


class Killed(Exception):
    pass


@pytest.mark.parametrize("devices", [1, 4])
def test_a_run_that_was_cut_off_ends_the_same(tmp_path, devices):
    mesh = make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4]) if devices > 1 else None
    whole = train(tmp_path / "whole", mesh=mesh)

    def cut(step):
        if step == 5:
            raise Killed
        return batches(step)

    with pytest.raises(Killed):
        train(tmp_path / "cut", cut, mesh=mesh)
    seen = []
    resumed = train(tmp_path / "cut", lambda step: seen.append(step) or batches(step), mesh=mesh)
    assert seen == [4, 5]
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path):
    whole = train(tmp_path)
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == ["4", "6"]
    (tmp_path / "ckpt" / "6" / "about" / "metadata").write_text("{")
    seen = []
    again = train(tmp_path, lambda step: seen.append(step) or batches(step))
    assert seen == [4, 5] and (tmp_path / "ckpt" / "damaged-6").is_dir()
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_a_signal_ends_it_with_its_state_saved(tmp_path):
    def stopped(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(step)

    whole = train(tmp_path / "whole")
    with pytest.raises(stops.Stopped, match="SIGTERM; the state of step 4 is in .*ckpt"), stops.handled():
        train(tmp_path / "cut", stopped, dataclasses.replace(PHASE, checkpoint_every=6))
    seen = []
    resumed = train(tmp_path / "cut", lambda step: seen.append(step) or batches(step))
    assert seen == [4, 5]
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_a_signal_waits_until_the_last_checkpoint_is_written(tmp_path, monkeypatch):
    closed = signal_at_close(monkeypatch)
    with pytest.raises(stops.Stopped, match="SIGTERM"), stops.handled():
        train(tmp_path)
    assert len(closed) == 1 and (closed[0] / str(PHASE.steps) / "about").is_dir()


@pytest.mark.parametrize("lora", [None, pytest.param(LoraConfig(rank=2, targets=("q_proj", "down_proj")),
                                                    marks=pytest.mark.slow)])
def test_packed_on_a_mesh_is_the_same_training(tmp_path, lora):
    def of_many_lengths(step):
        tokens, weights = batches(step)
        return tokens, weights * (np.arange(12) < np.array([[12], [3], [9], [0]]))  # the last row weighs nothing

    def run(name, phase=PHASE, **options):
        return train(tmp_path / name, of_many_lengths, phase, lora=lora, **options)

    plain = run("plain")
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 1}, jax.devices()[:4])
    uneven = make_mesh({"data": 3}, jax.devices()[:3])
    packed = dataclasses.replace(PHASE, microbatch_tokens=16, remat="layers")
    for name, found in {"packed": run("packed", packed), "mesh": run("mesh", packed, mesh=mesh),
                        "filled": run("filled", mesh=uneven)}.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b), atol=1e-5), plain, found)
        assert len(jax.tree.leaves(found)[0].sharding.device_set) == {"packed": 1, "mesh": 4, "filled": 3}[name]


def test_tokens_behind_the_last_weighted_one_and_the_callers_params_are_left_alone(tmp_path):
    params = init_params(MODEL, jax.random.key(0))
    before = jax.tree.map(np.array, params)
    first = train(tmp_path / "a", params=params)
    jax.tree.map(np.testing.assert_array_equal, before, params)

    def other_tails(step):
        tokens, weights = batches(step)
        return np.where(np.arange(12) < 9, tokens, 3), weights

    jax.tree.map(np.testing.assert_array_equal, first, train(tmp_path / "b", other_tails))
    moved = train(tmp_path / "c", lambda step: (batches(step)[0], np.ones((4, 12), np.float32)))
    assert not np.allclose(first["embed_tokens"], moved["embed_tokens"])


def test_a_loss_that_is_not_finite_stops_the_loop(tmp_path):
    params = init_params(MODEL, jax.random.key(0))
    params["norm"] = jnp.full_like(params["norm"], jnp.nan)
    with pytest.raises(NonFiniteUpdate, match="step 1.*; the state of step 0 is in ") as error:
        train(tmp_path, params=params)
    assert isinstance(error.value, UserError) and (tmp_path / "ckpt" / "0").is_dir()


@pytest.mark.parametrize("bad, every", [(3, 6), (3, 2), (6, 6)])
def test_one_step_that_is_not_finite_is_noticed_wherever_it_stands(tmp_path, bad, every):
    """The steps after it are finite, so that the numbers of a line show nothing."""

    def poisoned(step):
        tokens, weights = batches(step)
        return tokens, weights * np.float32(3e38 if step + 1 == bad else 1)

    with pytest.raises(NonFiniteUpdate, match=f"step {bad}: .*; the state of step {bad - 1} is in "):
        train(tmp_path, poisoned, dataclasses.replace(PHASE, checkpoint_every=every))
    assert (tmp_path / "ckpt" / str(bad - 1)).is_dir()


SHAPE = dict(embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=32)
TINY = Config(policy=ModelConfig(init="random", shape=SHAPE), pretrain=dataclasses.replace(
    PHASE, max_tokens=72, options={"reading_steps": 2, "short_steps": 1, "max_facts": 3, "episodes": 2, "reading": 1,
                                   "episode_tokens": 192}))


def test_pretraining_is_a_function_of_the_config(tmp_path):
    tokenizer = load_tokenizer(asset_path("asset:tiny_world/tokenizer"))
    model = DecoderConfig(**SHAPE, vocab_size=tokenizer.vocab_size)

    def pretrain(name, config=TINY):
        with Writer(tmp_path / name, tensorboard=False) as writer:
            return pretrain_policy(config, model, tokenizer, writer=writer, directory=tmp_path / name / "ckpt")

    params = pretrain("a")
    stages = [(line["stage"], line["step"]) for line in lines(tmp_path / "a") if "reading_4" in line]
    assert stages == [("pretrain_reading", 2), ("pretrain_episodes", 2), ("pretrain_episodes", 4)]
    # A second call finds both phases done and only reads what they made.
    jax.tree.map(np.testing.assert_array_equal, params, pretrain("a"))
    other = pretrain("b", dataclasses.replace(TINY, seed=1))
    assert not np.allclose(params["embed_tokens"], other["embed_tokens"])
    wrong = dataclasses.replace(TINY, pretrain=dataclasses.replace(TINY.pretrain, options={"episodse": 3}))
    with pytest.raises(UserError, match="episodse"):
        pretrain("c", wrong)
