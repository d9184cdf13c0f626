"""The paper's experiment has settings for every machine that it names, and `plan` takes the machine from them."""

import pathlib
import runpy

import pytest

from zsjax import plan
from zsjax.config import load_experiment, resolve
from zsjax.config.checks import find_device_problems
from zsjax.errors import ConfigError, UserError
from zsjax.launch import main
from zsjax.plan.targets import read_target

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "zerosearch_qwen25.py"
TARGETS = runpy.run_path(str(PATH))["TARGETS"]
PAIRS = [(target, *pair) for target, pairs in TARGETS.items() for pair in pairs]
ISSUE = [*[(target, policy, simulator) for target in ("a100-80gb:8", "h100:8")
           for policy, simulator in (("3b", "3b"), ("3b", "14b"), ("7b", "14b"))],
         ("v5e:16", "3b", "3b"), ("v5p:8", "7b", "14b"), ("v6e:16", "7b", "14b")]


def paper(arg):
    return resolve(load_experiment(f"{PATH}:{arg}"), files=False)


@pytest.mark.parametrize("target, policy, simulator", PAIRS)
def test_settings_run_on_their_target(target, policy, simulator):
    config = paper(f"policy={policy},simulator={simulator},target={target}")
    assert config.mesh.target == target and not find_device_problems(config, read_target(target).devices)


@pytest.mark.parametrize("target, policy, simulator", [case for case in ISSUE if not case[0].endswith("0gb:8")])
def test_settings_fit_their_target_by_the_estimate(target, policy, simulator):
    found = plan.make_plan(paper(f"policy={policy},simulator={simulator},target={target}"), compiles=False)
    assert found.fits and str(found.setup.target) == str(read_target(target))
    rollout, train = found.setup.config.rollout, found.setup.config.train
    assert (train.questions_per_step, train.group_size, rollout.max_tokens) == (64, 5, 4096)


def test_without_its_settings_the_smallest_target_is_too_small():
    assert set(ISSUE) <= set(PAIRS)
    plain = resolve(load_experiment(f"{PATH}:policy=3b,simulator=3b"), {"train.microbatch_rows": "16"}, files=False)
    assert not plan.make_plan(plain, "v5e:16", compiles=False, advise=False).fits


@pytest.mark.parametrize("arg, message", [
    ("target=h100:7", "'target' = 'h100:7': unknown; give one of a100-80gb:8, h100:8, v5p:8, v5e:16, v6e:16"),
    ("policy=7b,simulator=14b,target=v5e:16", "too small for policy=7b, simulator=14b; give one of a100-80gb:8, h100:8, "
                                              "v5p:8, v6e:16"),
    ("policy=70b", "'policy' = '70b': unknown; give one of 3b, 7b")])
def test_names_that_do_not_go_together_are_one_error(arg, message):
    with pytest.raises(ConfigError) as error:
        load_experiment(f"{PATH}:{arg}")
    assert message in str(error.value) and str(error.value).startswith("1 problem")


def test_a_plan_takes_the_target_of_the_settings(capsys):
    small = f"{PATH}:smoke,target=h100:8"
    with pytest.raises(UserError, match="give --target CHIP:NUMBER"):
        plan.make_plan(paper("smoke"), compiles=False)
    assert main(["plan", "--config", small, "--config.mesh.target=h100:8", "--estimate"]) == 0
    own = capsys.readouterr().out
    assert "on 8 x h100" in own and "chosen for" not in own
    assert main(["plan", "--config", small, "--config.mesh.target=h100:8", "--estimate", "--target=h200:4"]) == 0
    assert "the settings are chosen for h100:8 (mesh.target)" in capsys.readouterr().out
