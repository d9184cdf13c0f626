"""The loop with a scripted rollout: every algorithm takes its steps, and what steers a run survives a kill.

The rollout is faked (tests/test_experiments.py runs the real one), all else is real: scores, advantages, updates,
evaluation, alarms, checkpoints.
"""

import dataclasses
import functools
import gc
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.signalled import signal_at_close
from zsjax import train as loop
from zsjax import types
from zsjax.config import resolve
from zsjax.data import QuestionStream
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.monitor import health
from zsjax.monitor.catalog import is_step_metric
from zsjax.monitor.writer import Writer, read_jsonl, without_wall_time
from zsjax.parallel import stops
from zsjax.parallel.mesh import make_mesh
from zsjax.rl import learner
from zsjax.rl.algorithms import PRESETS, preset
from zsjax.rollout.played import Played, RolloutWork
from zsjax.rollout.reranking import Reranking
from zsjax.search import BudgetSpent, Engine
from zsjax.search.rerank import Seen
from zsjax.types import DOCUMENT, POLICY, PROMPT, Episodes, Question

MODEL = DecoderConfig(vocab_size=12, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
PARAMS = init_params(MODEL, jax.random.key(0))
QUESTIONS = [Question(str(i), "who", ("Bo",)) for i in range(64)]
T = 20


class Words:
    words = ["", "<answer>", "</answer>", "Bo", "Ada", "<search>", "</search>", "who", "hm", "x", "y", "z"]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


class Unused(Engine):
    """An engine that is never searched; `FakeRollout` notes in it which rerankers it was given."""

    def __init__(self):
        self.rerankers = []

    def search(self, queries, contexts, *, k):
        raise AssertionError("a fake rollout searches nothing")


class FakeRollout:
    """Prompt, a search, a document, hm's, and an answer that is right half of the time; a function of key and ids."""

    reshard_seconds = 0.0

    def __init__(self, model, engine, tokenizer, config, mesh, *, group_size):
        self.engine, self.tokenizer, self.group_size = engine, tokenizer, group_size

    def place(self, params):
        return params

    def play(self, params, asked, *, noise, key, group_ids, reranker):
        if reranker is not None:
            self.engine.rerankers.append(reranker)
        rng = np.random.default_rng([*np.asarray(jax.random.key_data(key)), int(group_ids[0])])
        B = len(asked) * self.group_size
        head, roles = [7, 5, 7, 6, 9, 10, 11], [PROMPT, POLICY, POLICY, POLICY, DOCUMENT, DOCUMENT, DOCUMENT]
        tokens, rows, length = np.zeros((B, T), np.int32), np.zeros((B, T), np.int8), np.zeros(B, np.int32)
        for b in range(B):
            said = [8] * int(rng.integers(1, 9)) + [1, int(rng.integers(3, 5)), 2]
            length[b] = len(head) + len(said)
            if reranker is not None:
                head[4] = said[-2]  # the document gives away whether the answer will be right
            tokens[b, :length[b]], rows[b, :length[b]] = head + said, roles + [POLICY] * len(said)
        empty = {field.name: np.zeros(B, np.int32) for field in dataclasses.fields(Episodes)}
        query, documents = (np.tile(np.array([span], np.int32), (B, 1, 1)) for span in ((1, 4), (4, 7)))
        group = np.repeat(group_ids, self.group_size)
        episodes = Episodes(**(empty | dict(
            tokens=tokens, roles=rows, behavior_logprobs=np.where(rows == POLICY, -2.4, 0).astype(np.float32),
            length=length, status=np.full(B, types.ANSWERED, np.int8), num_searches=np.ones(B, np.int32),
            noisy=rng.random((B, 1, 1)) < noise, search_status=np.ones((B, 1), np.int8), query_span=query,
            documents_span=documents, group_id=group, episode_id=np.arange(B, dtype=np.int32))))
        return Played(episodes, RolloutWork(*np.ones((4, 1), int)))


ONE_DEVICE = make_mesh({}, jax.devices()[:1])


def run(workdir, algorithm, steps=2, given=None, engine=None, functions=None, writer=Writer, **sections):
    config = resolve(dict(
        rollout=dict(max_tokens=T), optimizer=dict(learning_rate=0.01), algorithm=algorithm,
        **(sections | dict(train=dict(steps=steps, questions_per_step=3, group_size=4, logprob_chunk=8, eval_every=1,
                                      checkpoint_every=1, keep_checkpoints=9) | sections.get("train", {})))), check=False)
    workdir.mkdir(exist_ok=True)
    # train donates the parameters that it is given
    setup = loop.Setup(config, MODEL, jax.tree.map(jnp.copy, PARAMS), Words(), engine or Unused(),
                       QuestionStream(QUESTIONS, 0), **(dict(mesh=ONE_DEVICE, make_rollout=FakeRollout) | (functions or {})))
    with writer(workdir, tensorboard=False) as opened:
        params = loop.train(setup, workdir, opened, **(given or {}))
    return params, [without_wall_time(line) for line in read_jsonl(workdir / "metrics.jsonl")]


def test_updates_that_count_no_token_measure_nothing(tmp_path):
    """All rewards are equal, so that all groups are dropped: no alarm rings, and the adaptive KL coefficient stays."""
    _, lines = run(tmp_path, preset("dapo", kl_coef=0.1, kl_target=0.05, kl_horizon=60), steps=4,
                   reward=dict(terms={"no_search": 1.0}))
    assert [line["weight"] for line in lines] == [0] * 4 == [line["loss"] for line in lines]
    assert not {"entropy", "kl", "ratio_mean", "clip_fraction"} & set(lines[-1])
    assert len({line["kl_coef"] for line in lines}) == 1
    one = dict(loss=1.0, grad_norm=2.0, nonfinite=0.0, weight=4.0, entropy=3.0)
    found = learner.means([one, one | dict(loss=0.0, grad_norm=0.0, weight=0.0, entropy=0.0)])
    assert found == dict(loss=0.5, grad_norm=1.0, nonfinite=0.0, weight=2.0, entropy=3.0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_algorithm_takes_its_steps(name, tmp_path):
    params, lines = run(tmp_path, preset(name))
    assert [line["step"] for line in lines] == [1, 2] and not any(line["nonfinite"] for line in lines)
    assert all(np.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    assert all(line["grad_norm"] > 0 for line in lines) and lines[0]["reward"] == lines[0]["reward/f1"]
    changes = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), params, PARAMS)
    assert max(jax.tree.leaves(changes)) > 1e-4
    assert ("value/value_error" in lines[0]) == (name == "ppo")
    logged = {metric for line in lines for metric in line if not metric.startswith("alarm/")} - {"step", "stage"}
    assert not {metric for metric in logged if not is_step_metric(metric, ["f1"])}, "no alarm could name them"
    assert lines[0]["rounds"] >= 1 and (name == "dapo" or lines[0]["rounds"] == 1)


def test_a_kl_in_the_reward_that_weighs_nothing_needs_no_reference(tmp_path):
    """The other presets may be given kl_coef=0 as well, but only this one has the KL in the reward."""
    _, lines = run(tmp_path, preset("reinforce_plus_plus", kl_coef=0.0, track_kl=False), steps=1)
    assert lines[0]["grad_norm"] > 0 and not lines[0]["nonfinite"]


STEERED = dict(
    algorithm=preset("ppo", kl_coef=0.1, kl_in="reward", kl_kind="k1", kl_target=0.01, kl_horizon=20, lam=0.9,
                     drop_equal_groups=True, refill_rounds=1, sampler_clip=2.0, dual_clip=3.0, entropy_coef=0.01),
    curriculum=dict(schedule="adaptive", start=0.1, end=0.6, target=0.1, rate=0.5, decay=0.5),
    value=dict(warmup_steps=1, optimizer=dict(learning_rate=0.01)), reward=dict(terms={"f1": 1.0, "searches": -0.1}),
    train=dict(microbatch_tokens=64, minibatches=2, epochs=2))


@pytest.mark.parametrize("during", ["rollout", "update"])
def test_a_signal_ends_a_run_with_its_state_saved(tmp_path, during):
    class Stopped(FakeRollout):
        played = 0

        def play(self, *args, **kwargs):
            Stopped.played += 1
            if Stopped.played == 2 and during == "rollout":
                os.kill(os.getpid(), signal.SIGTERM)
            return super().play(*args, **kwargs)

    class Interrupts(Writer):
        def write(self, step, *args, **kwargs):
            super().write(step, *args, **kwargs)
            if step == 1 and during == "update":
                os.kill(os.getpid(), signal.SIGTERM)

    sparse = dict(train=dict(checkpoint_every=9))
    params, whole = run(tmp_path / "whole", preset("grpo"), steps=3, **sparse)
    with pytest.raises(stops.Stopped, match="SIGTERM; the state of step 1 is in"), stops.handled():
        run(tmp_path / "cut", preset("grpo"), steps=3, functions=dict(make_rollout=Stopped), writer=Interrupts, **sparse)
    resumed, lines = run(tmp_path / "cut", preset("grpo"), steps=3, **sparse)
    assert lines == whole
    jax.tree.map(np.testing.assert_array_equal, params, resumed)


@pytest.mark.parametrize("name", ["rloo", "ppo"])
def test_a_resumed_run_holds_no_second_state(tmp_path, name):
    """What is in memory at a rollout is the same as in a run that was not killed."""
    class Weighs(FakeRollout):
        held = []

        def play(self, *args, **kwargs):
            gc.collect()
            self.held.append(sum(x.nbytes for x in jax.live_arrays()) - before)
            return super().play(*args, **kwargs)

    def held(folder, steps):
        nonlocal before
        Weighs.held, before = [], sum(x.nbytes for x in jax.live_arrays())
        run(folder, preset(name, kl_coef=0.0, track_kl=False), steps=steps, functions=dict(make_rollout=Weighs),
            train=dict(checkpoint_every=2))
        return Weighs.held

    before = 0
    whole = held(tmp_path / "whole", steps=4)
    held(tmp_path / "cut", steps=2)
    assert held(tmp_path / "cut", steps=4)[1] == pytest.approx(whole[3], abs=64)  # but for counters


def test_a_signal_waits_until_the_last_checkpoint_is_written(tmp_path, monkeypatch):
    closed = signal_at_close(monkeypatch)
    with pytest.raises(stops.Stopped, match="SIGTERM"), stops.handled():
        run(tmp_path, preset("grpo"), steps=2)
    assert len(closed) == 1 and (closed[0] / "2" / "about").is_dir()


@pytest.mark.parametrize("kept,left", [(3, [1, 4, 5]), (5, [1, 2, 3, 4, 5]), (8, [1, 2, 3, 4, 5])])
def test_the_first_and_the_newest_trajectories_are_kept_and_none_goes_below_the_limit(kept, left, tmp_path, capsys):
    run(tmp_path, preset("grpo"), steps=5, train=dict(trajectories_every=1, trajectories_kept=kept, eval_every=9))
    names = [path.name for path in sorted((tmp_path / "trajectories").iterdir())]
    assert names == [f"train_{step:06d}.jsonl" for step in left]
    assert capsys.readouterr().out.count(f"the first file and the {kept - 1} newest are kept") == (kept < 5)


def test_what_steers_a_run_survives_a_kill(tmp_path):
    params, whole = run(tmp_path / "run", steps=3, **STEERED)
    # The first step trains the value model alone.
    assert "loss" not in whole[0] and whole[0]["value/loss"] > 0 and whole[1]["loss"] != 0
    assert whole[0]["noise"] == pytest.approx(0.1) and whole[0]["noise"] < whole[1]["noise"] < whole[2]["noise"] <= 0.6
    assert len({line["kl_coef"] for line in whole}) > 1
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "train" / "3")
    again, resumed = run(tmp_path / "run", steps=3, **STEERED)
    assert resumed == whole
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_run_goes_on_with_other_devices(tmp_path):
    four = dict(functions=dict(mesh=make_mesh({"data": 4}, jax.devices()[:4]), make_rollout=FakeRollout))
    params, whole = run(tmp_path / "one", preset("grpo"), steps=3)
    run(tmp_path / "moved", preset("grpo"), steps=3)
    for folder, further in (("2", four), ("3", {})):  # step 2 and 3 on four devices, then step 3 again on one
        shutil.rmtree(tmp_path / "moved" / "checkpoints" / "train" / "3")
        shutil.rmtree(tmp_path / "moved" / "checkpoints" / "train" / folder, ignore_errors=True)
        moved, lines = run(tmp_path / "moved", preset("grpo"), steps=3, **further)
        for line, wanted in zip(lines, whole, strict=True):
            assert line.pop("stage") == "train"
            assert line == pytest.approx({name: wanted[name] for name in line} | {"used/devices": line["used/devices"]},
                                         rel=1e-5, abs=1e-6)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), jax.device_get(moved), params)


def test_what_reranks_is_learned_and_survives_a_kill(tmp_path):
    def read(episodes, questions):
        B = len(episodes.length)
        query, question = ((np.zeros((*shape, 2), np.int32), np.ones(shape, np.int32)) for shape in ((B, 1), (B,)))
        return Seen(episodes.tokens[:, None, None, 4:7], np.full((B, 1, 1), 3, np.int32), query, question)

    given = dict(functions=dict(make_reranking=functools.partial(Reranking, read=read)))
    sections = dict(search=dict(rerank=dict(candidates=6, learning_rate=0.1, buckets=8)))
    engine, engine_again = Unused(), Unused()
    used, used_again = engine.rerankers, engine_again.rerankers
    params, whole = run(tmp_path / "run", preset("grpo"), steps=3, engine=engine, **given, **sections)
    assert not used[0]["bags"].any() and np.abs(used[1]["bags"]).max() == pytest.approx(0.1, rel=1e-3)
    assert whole[0]["rerank/concordance"] == 0.5 and whole[2]["rerank/concordance"] == 1.0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "train" / "3")
    again, resumed = run(tmp_path / "run", preset("grpo"), steps=3, engine=engine_again, **given, **sections)
    assert resumed == whole and len(used_again) == 1
    jax.tree.map(np.testing.assert_array_equal, (again, used_again[0]), (params, used[2]))
    _, off = run(tmp_path / "off", preset("grpo"))
    assert not any(name.startswith("rerank") for name in off[0])


def test_adapters_beside_a_value_model_go_on_after_a_kill(tmp_path):
    sections = dict(algorithm=preset("ppo"), policy=dict(lora=dict(rank=2)), train=dict(microbatch_tokens=64))
    best = []
    given = dict(evaluate=lambda params: {"eval/em": float(len(best))}, save_best=best.append)
    params, whole = run(tmp_path / "run", given=given, **sections)
    assert whole[0]["kl"] == pytest.approx(0, abs=1e-6) and whole[1]["kl"] > 1e-6  # the reference is what it was
    assert whole[0]["value/loss"] > 0 and jax.tree.structure(best[0]) == jax.tree.structure(PARAMS)  # merged
    changed = [np.abs(a - b).max() > 0 for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True)]
    assert sum(changed) == 7  # the seven projections of the layer
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "train" / "2")
    again, resumed = run(tmp_path / "run", given=given, **sections)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_functions_of_ones_own(tmp_path):
    def loss(batch, logprobs, *, loss_mask, entropy, values, reduction, clip_low, clip_high):
        total = -(batch.advantages * logprobs * loss_mask).sum()
        return total, loss_mask.sum().astype("float32"), {"mine": (total, 1.0)}

    def advantage(batch, *, loss_mask):
        return (batch.rewards * loss_mask).sum(axis=1)

    _, lines = run(tmp_path, preset("grpo"), functions=dict(loss=loss, advantage=advantage))
    assert all(line["mine"] > 0 and line["grad_norm"] > 0 for line in lines)


def test_the_best_policy_is_kept(tmp_path):
    scores, told, kept = iter([0.5, 0.9, 0.2, 0.9]), [], []

    def evaluate(params):
        told.append(next(scores))
        return {"eval/em": told[-1]}

    run(tmp_path, preset("rloo"), steps=4, given=dict(evaluate=evaluate,
                                                      save_best=lambda params: kept.append(told[-1])))
    assert kept == [0.5, 0.9]


def test_an_alarm_stops_the_run_after_a_checkpoint_and_it_can_go_on(tmp_path):
    bounds = dict(alarms={"entropy": [50.0, None], "reward": [None, 2.0]}, patience=2, stop=True)
    with pytest.raises(health.HealthAlarm, match="entropy"):
        run(tmp_path, preset("grpo"), steps=3, health=bounds, train=dict())
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["alarm/entropy"] for line in lines] == [0, 1] and not any(line["alarm/reward"] for line in lines)
    assert (tmp_path / "checkpoints" / "train" / "2").is_dir()
    _, lines = run(tmp_path, preset("grpo"), steps=3, health=bounds | dict(stop=False))
    assert [line["alarm/entropy"] for line in lines] == [0, 1, 1]


def test_a_start_that_left_no_state_leaves_no_trajectories_to_the_next(tmp_path):
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories" / "train_000003.jsonl").write_text("{}")  # of another config, which was withdrawn
    run(tmp_path, {}, steps=1)
    run(tmp_path, {}, steps=2)  # goes on, and keeps what it has
    kept = sorted(path.name for path in (tmp_path / "trajectories").iterdir())
    assert kept == ["train_000001.jsonl", "train_000002.jsonl"]


def test_nan_stops_the_run_with_its_trajectories(tmp_path):
    def advantage(batch, *, loss_mask):
        return batch.rewards.sum(axis=1) * np.nan

    with pytest.raises(loop.NonFiniteUpdate, match="train_000001.*; the state of step 0 is in ") as error:
        run(tmp_path, preset("grpo"), functions=dict(advantage=advantage))
    assert str(error.value).endswith(str(tmp_path / "checkpoints" / "train"))
    assert (tmp_path / "checkpoints" / "train" / "0").is_dir()
    assert len(read_jsonl(tmp_path / "trajectories" / "train_000001.jsonl")) == 12
    assert not read_jsonl(tmp_path / "metrics.jsonl")


def test_an_error_behind_a_finite_update_does_not_claim_the_state_before_it(tmp_path):
    """Of two updates of a step only the second is not finite: the state before the step is gone."""
    def poison(batch, *, loss_mask):
        return np.where(np.arange(len(batch.rewards)) == 0, np.nan, 0.1).astype(np.float32)

    with pytest.raises(loop.NonFiniteUpdate, match="; no state was saved in "):
        run(tmp_path, preset("grpo"), functions=dict(advantage=poison), train=dict(minibatches=2, checkpoint_every=9))


@pytest.mark.parametrize("where", ["rollout", "evaluation"])
def test_a_spent_budget_leaves_its_state(tmp_path, where):
    def spent(*_, **__):
        raise BudgetSpent("web search: 2.00 dollars were spent")

    class Broke(FakeRollout):
        def play(self, *args, **options):
            self.calls = getattr(self, "calls", 0) + 1
            return spent() if self.calls > 1 else super().play(*args, **options)

    with pytest.raises(BudgetSpent, match="2.00 dollars were spent; the state of step 1 is in "):
        run(tmp_path, preset("grpo"), train=dict(checkpoint_every=9),
            given=dict(evaluate=spent if where == "evaluation" else None),
            functions=dict(make_rollout=Broke) if where == "rollout" else None)  # of the second step
    assert (tmp_path / "checkpoints" / "train" / "1").is_dir()
    _, lines = run(tmp_path, preset("grpo"))
    assert [line["step"] for line in lines] == [1, 2]  # gone on with


@pytest.mark.parametrize("steps", [1, 2])
def test_an_evaluation_that_spent_the_budget_is_made_when_the_run_goes_on(tmp_path, steps):
    def evaluations(workdir, spent):
        """Runs and returns (parameters, lines, the evaluations whose policy was kept as the best)."""
        scores, best = [], []

        def evaluate(params):
            if spent:
                raise BudgetSpent("web search: 2.00 dollars were spent")
            scores.append(float(sum(np.abs(np.asarray(x)).sum() for x in jax.tree.leaves(params))))
            return {"eval/em": 1.0 - len(scores) / 10, "eval/sum": scores[-1]}

        given = dict(evaluate=evaluate, save_best=lambda params: best.append(len(scores)))
        return *run(workdir, preset("grpo"), steps=steps, given=given, train=dict(checkpoint_every=9),
                    health=dict(best_metric="eval/em")), best

    for _ in range(2):  # not paid for at the first resumption, either
        with pytest.raises(BudgetSpent, match="the state of step 1 is in "):
            evaluations(tmp_path / "poor", spent=True)
    params, lines, best = evaluations(tmp_path / "poor", spent=False)
    wanted = evaluations(tmp_path / "rich", spent=False)
    assert lines == wanted[1] and all("eval/em" in line for line in lines) and best == wanted[2] == [1]
    jax.tree.map(np.testing.assert_array_equal, params, wanted[0])


def test_only_the_most_informative_rows_are_updated_on(tmp_path):
    _, lines = run(tmp_path, preset("grpo"), train=dict(keep="reward_spread", keep_fraction=2 / 3))
    _, whole = run(tmp_path / "all", preset("grpo"))
    assert lines[0]["weight"] < whole[0]["weight"] and lines[0]["reward"] == whole[0]["reward"]
