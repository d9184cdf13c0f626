"""Plans: figures called exact are what arrays really take, formulas are what XLA counts, and the paper's settings fit."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.planned_run import SHAPE, SMALL
from zsjax import plan
from zsjax.config import ConfigError, UserError, load_experiment, resolve
from zsjax.launch import parse_flags
from zsjax.models.decoder import forward, init_params
from zsjax.models.flops import forward_flops
from zsjax.models.layers import DecoderConfig
from zsjax.models.placement import for_decoding, param_shardings
from zsjax.parallel.mesh import TRAIN_RULES, make_mesh, replicated, reshard
from zsjax.plan import aot, memory, targets, topology
from zsjax.plan.setup import make_setup, model_shape
from zsjax.plan.targets import read_target
from zsjax.rl.optimizer import make_optimizer

ROOT = pathlib.Path(__file__).parents[1]


def paper(arg, **overrides):
    config = load_experiment(f"{ROOT / 'experiments' / 'zerosearch_qwen25.py'}:{arg}")
    return resolve(config, {name.replace("__", "."): str(value) for name, value in overrides.items()}, files=False)


def bytes_on_first_device(tree) -> int:
    device = jax.devices()[0]
    return sum(shard.data.nbytes for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == device)


def test_exact_figures_are_what_a_device_holds():
    config = resolve(SMALL)
    setup = make_setup(config, read_target("h100:8"))
    figures = {figure.name: figure for figure in memory.footprint(setup)}
    mesh = make_mesh(config.mesh)
    model = DecoderConfig(**SHAPE)
    params = reshard(init_params(model, jax.random.key(0)),
                              param_shardings(model, mesh, TRAIN_RULES))
    state = jax.tree.map(lambda x: x if x.ndim else reshard(x, replicated(mesh)),
                         make_optimizer(config.optimizer, 1).init(params))
    ready = for_decoding(params, model, mesh)
    for name, held in (("policy parameters", params), ("reference parameters", params), ("optimizer state", state),
                       ("policy parameters for decoding", ready)):
        assert figures[name].exact and figures[name].bytes == bytes_on_first_device(held), name
    # 4 shards: 2 questions of 2 episodes; 1 of 2 kv heads of 8 numbers; k and v of 2 layers; beside it 4 lengths.
    assert figures["policy cache"].bytes == pytest.approx(4 * 64 * 8 * 2 * 2 * 4, abs=16)
    peaks = memory.peak(list(figures.values()))
    assert peaks["update"] > peaks["score"] > sum(f.bytes for f in figures.values() if f.phase == memory.ALWAYS)


def test_what_the_target_does_is_counted_not_what_this_machine_would():
    """On CPU a bfloat16 model's cache is float32, on the target it is not; shared instructions are read once a rollout."""
    small = SMALL | dict(policy=SMALL["policy"] | dict(dtype="bfloat16"))
    made = plan.make_plan(resolve(small), "h100:8", compiles=False)
    size = {figure.name: figure.bytes for figure in made.figures}["policy cache"]
    assert size == pytest.approx(4 * 64 * 8 * 2 * 2 * 2, abs=16)
    read = {work.name: work.flops for work in made.work}["simulator reads prompts"]
    setup, shared = made.setup, len(made.setup.engine.shared_prefix)
    own = setup.engine.prompt_size - shared
    once = forward_flops(setup.simulator, own, own * (shared + own / 2), 0) / setup.tensor
    assert shared > 20 and read == pytest.approx(setup.config.rollout.max_turns * setup.rollout_rows * once)


def test_adapters_and_int8_are_counted_as_they_are():
    changed = SMALL | dict(policy=SMALL["policy"] | dict(lora=dict(rank=2), param_dtype="bfloat16"),
                           simulator=SMALL["simulator"] | dict(quantize="int8", param_dtype="bfloat16"))
    plain, setup = (make_setup(resolve(config), read_target("h100:8")) for config in (SMALL, changed))
    before, after = ({f.name: f.bytes for f in memory.footprint(s)} for s in (plain, setup))
    assert "reference parameters" not in after
    assert after["frozen policy parameters, also the reference"] == before["policy parameters"] // 2
    assert after["optimizer state"] == pytest.approx(2 * after["adapters"], abs=16) and after["adapters"] > 0
    assert after["simulator parameters"] < 0.35 * before["simulator parameters"]
    arguments = aot.measure(aot.programs(setup, jax.devices())["update"]().compile())["arguments"]
    batch = 4 * (64 * (4 + 1 + 3 * 4) + 1)
    held = [after[name] for name in ("adapters", "frozen policy parameters, also the reference", "optimizer state")]
    assert arguments == sum(held) + batch


def test_flops_are_those_that_xla_counts():
    model, B, T = DecoderConfig(**SHAPE | dict(embed_dim=128, mlp_dim=256)), 2, 32
    params = memory.param_shapes(model, "float32")
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
    counted = jax.jit(lambda params, tokens: forward(params, model, tokens)).lower(params, tokens).cost_analysis()["flops"]
    # XLA makes all T^2 pairs, masked or not, and counts norms, softmax and rotations as well.
    assert forward_flops(model, B * T, B * T * T, B * T) == pytest.approx(counted, rel=0.1)


def test_residuals_under_remat_are_the_layers_inputs():
    model = DecoderConfig(**SHAPE)
    kept = [memory.residual_bytes(dataclasses.replace(model, num_layers=n), 3, 16, "layers", jnp.float32) for n in (1, 2, 3)]
    assert kept[2] - kept[1] == kept[1] - kept[0] == 3 * 16 * 32 * 4
    assert memory.residual_bytes(model, 3, 16, "none", jnp.float32) > 3 * kept[1]


def test_programs_are_those_that_train_calls():
    """Compiled for the CPU's eight devices instead of a TPU's: arguments are the exact figures, to the byte."""
    setup = make_setup(resolve(SMALL), read_target("v5e:8"))
    figures = {figure.name: figure.bytes for figure in memory.footprint(setup)}
    lowered = aot.programs(setup, jax.devices())
    assert set(lowered) == {"update", "score", "rollout"}
    rows = 16 // 4
    batch = rows * (64 * (4 + 1 + 3 * 4) + 1)  # tokens, roles, log-probs old and of the reference, advantages; validity
    arguments = aot.measure(lowered["update"]().compile())["arguments"]
    assert arguments == figures["policy parameters"] + figures["optimizer state"] + batch
    assert "while" in lowered["rollout"]().as_text()


@pytest.mark.parametrize("policy", ["3b", "7b"])
def test_the_papers_settings_fit_eight_a100(policy):
    steps = []
    for simulator in ("3b", "7b", "14b"):
        found = plan.make_plan(paper(f"policy={policy},simulator={simulator}"), "a100-80gb:8")
        assert found.fits and found.setup.target.devices == 8 and not found.advice
        train, rollout = found.setup.config.train, found.setup.config.rollout
        assert (train.questions_per_step, train.group_size, rollout.max_tokens) == (64, 5, 4096)
        steps.append(found.seconds)
    assert 10 < steps[0] < steps[1] < steps[2] < 300
    text = plan.describe(found)
    assert "FITS" in text and "estimated" in text and "exact" in text and "stand-in" in text


def test_advice_makes_it_fit():
    options = dict(train__remat="none", train__microbatch_rows=0)
    tight = plan.make_plan(paper("policy=7b,simulator=3b", **options), "a100-80gb:8")
    assert not tight.fits and tight.advice and "try --config.train.remat=layers" in plan.describe(tight)
    changes = {flag.removeprefix("--config.").split("=")[0].replace(".", "__"): flag.split("=")[1] for flag in tight.advice}
    assert plan.make_plan(paper("policy=7b,simulator=3b", **options | changes), "a100-80gb:8").fits
    hopeless = plan.make_plan(paper("policy=7b,simulator=3b"), "v5e:1", compiles=False)
    assert not hopeless.fits and "more devices" in plan.describe(hopeless)


@pytest.mark.parametrize("share, named", [
    (0.9, {"rollout.rows"}), (0.3, {"rollout.rows", "train.microbatch_rows"}),
    (0.08, {"rollout.rows", "train.microbatch_rows", "policy.dtype", "simulator.quantize", "policy.lora.rank"})])
def test_advice_is_enough_and_no_more(share, named, monkeypatch):
    config = resolve(SMALL | dict(mesh=dict(data=1), train=SMALL["train"] | dict(group_size=4)))
    peak = plan.make_plan(config, "h100:1", compiles=False).peak
    memory = share * peak / plan.USABLE["gpu"]
    monkeypatch.setitem(targets.CHIPS, "small", dataclasses.replace(targets.CHIPS["h100"], memory=memory))

    def fits(changes):
        return plan.make_plan(resolve(config, changes), "small:1", compiles=False, advise=False).fits

    found = plan.make_plan(config, "small:1", compiles=False)
    advice = dict(flag.removeprefix("--config.").split("=") for flag in found.advice)
    assert set(advice) == named and fits(advice) and not found.fits
    assert not any(fits({name: value for name, value in advice.items() if name != left_out}) for left_out in advice)
    assert ("another training" in plan.describe(found)) == ("policy.lora.rank" in named)


def test_one_a100_takes_the_papers_3b_policy_with_adapters():
    found = plan.make_plan(paper("policy=3b,simulator=3b", train__microbatch_rows=1), "a100-80gb:1", compiles=False)
    assert found.advice == ("--config.rollout.rows=160", "--config.policy.lora.rank=16")
    again = plan.make_plan(paper("policy=3b,simulator=3b", rollout__rows=160, policy__lora__rank=16), "a100-80gb:1")
    assert again.fits and "nothing was compiled" in plan.describe(again)


def test_shapes_are_found_without_weights(tmp_path):
    config = paper("policy=7b,instruct,weights=/nowhere")
    assert model_shape(config.policy, "policy", None).num_layers == 28
    with pytest.raises(UserError, match="does not know its shape"):
        model_shape(dataclasses.replace(config.policy, init="hf:some/model"), "policy", None)


@pytest.mark.parametrize("target, message", [("a100", "unknown target"), ("h100:none", "not a number"),
                                             ("v5e:3", "slices of")])
def test_targets_that_there_are_not(target, message):
    with pytest.raises(UserError, match=message):
        plan.make_plan(resolve(SMALL), target)


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="does not fit 4 devices"):
        plan.make_plan(resolve(SMALL), "h100:4")


def test_only_plan_has_a_target(capsys):
    with pytest.raises(SystemExit):
        parse_flags("--config x.py --workdir w --target h100".split())
    assert "--target" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("target, tensor", [("v5e:4", 2), ("v6e:16", 4)])  # one host, and the rollout of one of four
def test_tpu_programs_really_compile(target, tensor):
    pytest.importorskip("libtpu")
    found = plan.make_plan(resolve(SMALL | dict(mesh=dict(data=-1, tensor=tensor))), target)
    assert {line["program"] for line in found.compiled} == {"update", "score", "rollout"} and found.fits
    assert all(np.isfinite(line["arguments"]) and (line["flops"] is None or line["flops"] > 0) for line in found.compiled)


@pytest.mark.slow
def test_gpu_programs_really_compile():
    if not topology.has_compiler("gpu"):
        pytest.skip("needs jax's CUDA plug-in: pip install 'zsjax[plan-gpu]'")
    config = resolve(SMALL | dict(mesh=dict(data=-1), policy=dict(
        init="random", shape=SHAPE | dict(head_dim=16), dtype="bfloat16")))  # 8 rows of 2 kv heads: Flash-Decoding
    found = plan.make_plan(config, "h100:2")
    assert {line["program"] for line in found.compiled} == {"update", "score", "rollout"}
    assert all(line["flops"] > 0 and line["phases"] for line in found.compiled) and found.fits
    assert "predicted" in plan.describe(found)
