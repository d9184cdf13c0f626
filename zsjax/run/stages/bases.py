"""Base models from scratch: the policy's and the simulator's."""

from zsjax.run.stages.run import Run


def pretrain(run: Run):
    if run.done("pretrain", "models/base"):
        return
    from zsjax.tiny_world.pretrain_policy import pretrain_policy

    model, params = pretrain_policy(run.config, run.tokenizer, writer=run.writer,
                                    directory=run.path("checkpoints") / "pretrain", config_json=run.config_json)
    run.save_model("base", model, params)


def pretrain_simulator(run: Run):
    if run.done("pretrain_simulator", "models/simulator_base"):
        return
    from zsjax.tiny_world.pretrain_simulator import pretrain_simulator

    model, params = pretrain_simulator(run.config, run.tokenizer, writer=run.writer,
                                       directory=run.path("checkpoints") / "pretrain_simulator",
                                       config_json=run.config_json)
    run.save_model("simulator_base", model, params)
