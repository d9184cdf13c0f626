"""Plans of every algorithm: what trains is counted, and what is compiled is what training runs."""

import dataclasses
import inspect
import pathlib

import jax
import pytest

from tests import planned_run
from zsjax import plan
from zsjax.config import load_experiment, resolve
from zsjax.config.checks import find_problems
from zsjax.plan import aot, memory
from zsjax.plan.setup import make_setup
from zsjax.plan.targets import read_target
from zsjax.rl.algorithms import PRESETS, preset

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
SHAPE = planned_run.SHAPE | dict(tie_embeddings=False)
SMALL = planned_run.SMALL | dict(
    policy=dict(init="random", shape=SHAPE), simulator=dict(init="random", shape=SHAPE | dict(num_layers=1)))


def planned(**rooms):
    config = {**SMALL, **{room: {**SMALL.get(room, {}), **fields} for room, fields in rooms.items()}}
    return plan.make_plan(resolve(config), "h100:8", compiles=False, advise=False)


def figures(found):
    return {(figure.name, figure.phase): figure.bytes for figure in found.figures}


def of_work(found, name):
    return next((part.flops for part in found.work if part.name.startswith(name)), 0)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem)
@pytest.mark.parametrize("name", PRESETS)
def test_algorithm_is_a_preset_in_every_experiment(path, name):
    wanted = preset(name)
    config = resolve(load_experiment(f"{path}:algorithm={name}"), files=False)
    assert not find_problems(config, files=False)
    assert {field: getattr(config.algorithm, field) for field in wanted if field != "kl_coef"} == {
        field: value for field, value in wanted.items() if field != "kl_coef"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_planned_with_its_value_model(name):
    plain, found = planned(), planned(algorithm=preset(name))
    held = figures(found)
    if not PRESETS[name].get("value_model"):
        assert not any("value" in part for part, _ in held) and found.peak == plain.peak
        return
    # The policy's trunk without its unembedding, and a head; float32 moments of both.
    value, policy = held["value parameters", memory.ALWAYS], held["policy parameters", memory.ALWAYS]
    assert policy > value > 0.5 * policy
    assert held["value optimizer state", memory.ALWAYS] == pytest.approx(2 * value, abs=64)
    assert found.peak >= plain.peak + 3 * value
    assert of_work(found, "value update") == 3 * of_work(found, "old values") > 0.1 * of_work(found, "update")


def test_programs_of_ppo_are_compiled_and_their_arguments_counted():
    setup = make_setup(resolve(SMALL | dict(algorithm=preset("ppo"))), read_target("v5e:8"))
    held = {figure.name: figure.bytes for figure in memory.footprint(setup)}
    lowered = aot.programs(setup, jax.devices())
    assert {"value score", "value update"} < set(lowered) <= set(memory.ARGUMENTS)
    arguments = aot.measure(lowered["value update"]().compile())["arguments"]
    rows = 16 // 4 * (64 * (4 + 1 + 2 * 4) + 1)  # tokens, roles, values, returns, row_valid
    assert arguments == held["value parameters"] + held["value optimizer state"] + rows


@pytest.mark.parametrize("fields", [
    dict(kl_coef=1e-3, kl_in="reward", kl_kind="k1"),  # refused as a loss
    dict(kl_coef=1e-3, kl_target=0.1, track_kl=False),  # a traced coefficient
    dict(dual_clip=3.0, sampler_clip=2.0),
], ids=lambda fields: min(fields.keys() - {"kl_coef"}))
def test_the_update_is_lowered_with_the_options_of_training(fields):
    plain, changed = (aot.programs(make_setup(resolve(SMALL | dict(algorithm=algorithm)), read_target("v5e:8")),
                                   jax.devices())["update"]().as_text() for algorithm in ({}, fields))
    assert (plain == changed) == (fields.get("kl_in") == "reward")


def test_packed_updates_are_two_programs():
    setup = make_setup(resolve(SMALL | dict(train=SMALL["train"] | dict(microbatch_tokens=512))), read_target("v5e:8"))
    assert setup.micro_rows(setup.update_rows) == 2  # 512 tokens are 8 rows of 64, on 4 shards
    lowered = aot.programs(setup, jax.devices())
    held = {figure.name: figure.bytes for figure in memory.footprint(setup)}
    found = aot.measure(lowered["apply"]().compile())["arguments"]
    gradients = held["gradients, float32"]
    assert found == pytest.approx(held["policy parameters"] + held["optimizer state"] + gradients, rel=0.01)
    assert "dot" in lowered["update"]().as_text()


def test_epochs_kept_episodes_and_adapters_change_the_work():
    plain = of_work(planned(), "update")
    assert of_work(planned(train=dict(epochs=3)), "update") == 3 * plain
    assert of_work(planned(train=dict(keep="reward_spread", keep_fraction=0.5)), "update") == plain / 2
    assert of_work(planned(policy=dict(lora=dict(rank=2))), "update") == pytest.approx(plain * 2 / 3)
    double = planned(search=dict(noise_per="document"))
    assert of_work(double, "simulator writes") == pytest.approx(2 * of_work(planned(), "simulator writes"))
    assert figures(double)["simulator cache", memory.ROLLOUT] == pytest.approx(
        2 * figures(planned())["simulator cache", memory.ROLLOUT], rel=0.01)


def test_reranker_and_an_adaptive_kl_are_counted():
    held = figures(planned(search=dict(rerank=dict(candidates=4, buckets=512))))
    assert held["reranker and its optimizer state", memory.ALWAYS] > 3 * 4 * 2 * 512
    reference = "reference parameters", memory.ALWAYS
    assert reference not in figures(planned(algorithm=dict(track_kl=False)))
    assert reference in figures(planned(algorithm=dict(track_kl=False, kl_coef=1e-3, kl_target=0.1)))


def test_scores_hold_all_rows_where_nothing_cuts_them():
    """Minibatches cut updates, not scores."""
    whole, parts = (figures(planned(train=dict(minibatches=n))) for n in (1, 4))
    name = "one layer's activations", memory.SCORE
    assert parts[name] == whole[name]


def test_nothing_else_makes_updates():
    assert "make_update" not in inspect.getsource(aot) and dataclasses.is_dataclass(aot.make_programs(
        resolve(SMALL), make_setup(resolve(SMALL), read_target("h100:8")).policy, loss="ppo_clip",
        optimizer=memory.make_optimizers(resolve(SMALL))[0]))
