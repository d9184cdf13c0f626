"""Reinforcement learning of the policy, with evaluations on the real engine."""

import jax

from zsjax.data import QuestionStream
from zsjax.evaluate import play, summarize
from zsjax.monitor import costs
from zsjax.parallel import mesh
from zsjax.rollout import make_rollout
from zsjax.run.stages.context import Run


def train(run: Run):
    if run.done("train", "models/policy"):
        return
    from zsjax.train import Setup, train

    config = run.config
    model, params = run.start_policy(mesh.TRAIN_RULES)
    engine = run.engine(config.search.engine, config.data.corpus, spread=True)
    stream = QuestionStream(run.train_questions, config.seed)
    setup = Setup(config, model, params, run.tokenizer, engine, stream, mesh=run.mesh)
    del params  # the learner places them anew; this name would keep a second copy
    params = train(setup, run.workdir, run.writer, evaluate=real_evaluation(run, model), config_json=run.config_json,
                   save_best=lambda params: run.save_model("best", model, params))
    run.save_model("policy", model, params)


def real_evaluation(run: Run, model):
    """params -> {metric: value} on a few held-out questions with the real engine."""
    config = run.config
    engine = run.engine(config.search.eval_engine, config.data.eval_corpus, spread=True)
    rollout = costs.Meter(make_rollout(model, engine, run.tokenizer, config, run.mesh), engine)
    questions = run.watched_questions

    def evaluate_now(params):
        records, _ = play(rollout, params, questions, key=jax.random.key(config.seed),
                          batch_rows=min(len(questions), config.evaluate.batch_rows))
        return evaluation_metrics(records, questions, rollout.take())

    return evaluate_now


def evaluation_metrics(records, questions, used) -> dict[str, float]:
    """Metrics of an evaluation in training, from its records, its questions, and what it cost (of `Meter.take`)."""
    rows = summarize("", records, questions)
    scores = {f"eval/{name}": sum(row[name] * row["n"] for row in rows) / len(records) for name in ("em", "f1", "searches")}
    by_hops = {f"eval/em_{row['hops']}_hop": row["em"] for row in rows if row["hops"] != "all"}
    if failed := sum(row["failed_searches"] for row in rows):
        scores["eval/failed_searches"] = failed
    # The step's line has the devices, and its time includes this evaluation's.
    used = {f"eval/{name}": value for name, value in used.items() if name not in ("used/devices", "time/step")}
    return scores | by_hops | used
