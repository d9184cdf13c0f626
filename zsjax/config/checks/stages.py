"""Checks of the list of stages, and of the stages beside training: collect, evaluate, and the gates."""

from zsjax.config.checks.search import check_key
from zsjax.config.fields import STAGES
from zsjax.search import registry


def check_stages(found, config):
    if not config.stages:
        found.add("stages", "nothing to do", f"name some of {', '.join(STAGES)}")
    elif set(config.stages) <= set(STAGES) and list(config.stages) != sorted(set(config.stages), key=STAGES.index):
        found.add("stages", "repeated or out of order", f"give each once, in the order {', '.join(STAGES)}")
    if "pretrain_simulator" in config.stages and not config.data.corpus.startswith("tiny_world:"):
        found.add("data.corpus", "the stage pretrain_simulator makes a base for the tiny world only",
                  "set simulator.init to a pretrained model, and drop the stage")


def check_collect_and_evaluate(found, config):
    evaluate, evaluates = config.evaluate, "evaluate" in config.stages
    if evaluate.samples > 1 and evaluate.temperature == 0:
        found.add("evaluate.samples", "at temperature 0 every sample is the same", "set evaluate.temperature, or give 1")
    if "trajectory_sft" in evaluate.baselines and evaluates and not config.trajectory_sft.steps:
        found.add("trajectory_sft.steps", "the baseline would learn nothing", "give its steps")
    if evaluates and evaluate.drop_best and "simulator" in registry.needs(config.search.eval_engine, config.search):
        found.add("evaluate.drop_best", "a simulator does not lose documents", "set it to 0, or evaluate with a real engine")
    if evaluates and evaluate.misinformation and not config.data.eval_corpus.startswith("tiny_world:"):
        found.add("evaluate.misinformation", "only the tiny world's documents can be made wrong", "set it to 0")
    collect = config.collect
    if "collect" in config.stages and not (collect.episodes or collect.queries or collect.probes):
        found.add("collect.episodes", "nothing to collect", "give episodes, collect.queries or collect.probes")
    if collect.off_target and "question" not in collect.queries:
        found.add("collect.off_target", "is made of the searches for the questions themselves",
                  'add "question" to collect.queries, or set it to 0')
    if collect.pairs and collect.label == "answer":
        found.add("collect.pairs", "an episode's answer makes a search useful or noisy, never both",
                  'set collect.label to "ranking", "contains" or "judge"')
    if collect.label == "judge" and "collect" in config.stages:
        _check_judge(found, collect.judge)


def _check_judge(found, judge):
    from zsjax.search.simulator.prompt import JudgeTemplate

    if bool(judge.init) == bool(judge.url):
        found.add("collect.judge.init", f"and collect.judge.url = {judge.url!r}: a judge has exactly one of the two",
                  "give a checkpoint, or the URL of a chat server")
    elif judge.init:
        found.is_path("collect.judge.init")
        if judge.tokenizer:
            found.is_path("collect.judge.tokenizer")
    else:
        if judge.extra_body.keys() & {"model", "messages"}:
            found.add("collect.judge.extra_body", "the request itself sets model and messages", "remove them")
        if not judge.model:
            found.add("collect.judge.model", "the chat server needs the name of its model",
                      "give the name that the server uses")
        check_key(found, "collect.judge.key_env", judge.key_env)
    found.loads("collect.judge.template", JudgeTemplate.load, "give 'default' or a file with the three slots")
