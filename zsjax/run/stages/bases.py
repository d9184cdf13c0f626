"""Base models from scratch: the policy's and the simulator's."""

from zsjax.run import build
from zsjax.run.stages.context import Run


def pretrain(run: Run):
    if run.done("pretrain", "models/base"):
        return
    from zsjax.tiny_world.pretrain_policy import pretrain_policy

    model, _ = build.model(run.config.policy, run.tokenizer, seed=run.config.seed)
    params = pretrain_policy(run.config, model, run.tokenizer, writer=run.writer, mesh=run.mesh,
                             directory=run.path("checkpoints") / "pretrain", config_json=run.config_json)
    run.save_model("base", model, params)


def pretrain_simulator(run: Run):
    if run.done("pretrain_simulator", "models/simulator_base"):
        return
    from zsjax.tiny_world.pretrain_simulator import train_simulator_base

    model, params = build.model(run.config.simulator, run.tokenizer, seed=run.config.seed + 1)
    start = build.simulator(run.config, model, params, run.tokenizer)
    base = train_simulator_base(run.config, start, writer=run.writer, mesh=run.mesh,
                                directory=run.path("checkpoints") / "pretrain_simulator", config_json=run.config_json)
    run.save_model("simulator_base", base.config, base.params)
