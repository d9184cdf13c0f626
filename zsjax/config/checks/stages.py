"""Checks of the list of stages, and of the stages beside training: collect, evaluate, and the gates."""

import os

from zsjax.config.checks.names import BASELINES, DTYPES
from zsjax.config.fields import STAGES


def check_stages(found, config):
    if not config.stages:
        found.add("stages", "nothing to do", f"name some of {', '.join(STAGES)}")
    unknown = [stage for stage in config.stages if stage not in STAGES]
    if unknown:
        found.add("stages", f"{unknown[0]!r} is unknown", f"name some of {', '.join(STAGES)}")
    elif list(config.stages) != sorted(set(config.stages), key=STAGES.index):
        found.add("stages", "repeated or out of order", f"give each once, in the order {', '.join(STAGES)}")


def check_collect_and_evaluate(found, config):
    found.at_least(1, "collect.episodes", "evaluate.batch_rows", "evaluate.samples")
    if config.evaluate.samples > 1 and config.evaluate.temperature == 0:
        found.add("evaluate.samples", "at temperature 0 every sample is the same", "set evaluate.temperature, or give 1")
    found.within(0, 10, "evaluate.temperature")
    for name in config.evaluate.baselines:
        if name not in BASELINES:
            found.add("evaluate.baselines", f"{name!r} is unknown", f"name some of {', '.join(BASELINES)}")
    found.at_least(2, "evaluate.baseline_samples")
    found.one_of("evaluate.baseline_model", ("policy", "base"))
    if "trajectory_sft" in config.evaluate.baselines and "evaluate" in config.stages and not config.trajectory_sft.steps:
        found.add("trajectory_sft.steps", "the baseline would learn nothing", "give its steps")
    found.one_of("collect.label", ("ranking", "answer", "contains", "judge"))
    if config.collect.label == "judge" and "collect" in config.stages:
        _check_judge(found, config.collect.judge)
    found.within(0, 0.5, "collect.hold_out")
    if config.evaluate.drop_best and config.search.eval_engine == "simulator":
        found.add("evaluate.drop_best", "a simulator does not lose documents", "set it to 0, or evaluate with a real engine")
    found.within(0, 1, "evaluate.drop_best", "gates.reading", "gates.useful", "gates.noisy", "gates.leak")


def _check_judge(found, judge):
    from zsjax.search.simulator.prompt import JudgeTemplate

    if bool(judge.init) == bool(judge.url):
        found.add("collect.judge.init", f"and collect.judge.url = {judge.url!r}: a judge is the one or the other",
                  "give a checkpoint, or the address of a chat server")
    elif judge.init:
        found.is_path("collect.judge.init")
        found.one_of("collect.judge.dtype", DTYPES)
        found.at_least(1, "collect.judge.max_tokens", "collect.judge.batch_rows")
        if judge.tokenizer:
            found.is_path("collect.judge.tokenizer")
    else:
        if not judge.url.startswith(("http://", "https://")):
            found.add("collect.judge.url", "is no address of a server", "give http://HOST:PORT/v1 of the server")
        if not judge.model:
            found.add("collect.judge.model", "the chat server must be told which model", "give the name it knows it by")
        if found.files and judge.key_env and not os.environ.get(judge.key_env):
            found.add("collect.judge.key_env", f"the environment has no {judge.key_env}", "set it")
    try:
        JudgeTemplate.load(judge.template)
    except (OSError, ValueError) as error:
        found.add("collect.judge.template", str(error), "give 'default' or a file with the three slots")
