"""A run's policy as a Hugging Face folder."""

import math
import pathlib

import jax

from zsjax.config import Config
from zsjax.errors import UserError
from zsjax.monitor.writer import Writer
from zsjax.parallel import mesh
from zsjax.run import build
from zsjax.run.stages.context import Run


def export(config: Config, workdir, out) -> pathlib.Path:
    """Writes the trained policy, or that of the last checkpoint, to a Hugging Face folder `out`.

    Raises:
      UserError: the run has no policy yet, or `out` exists.
    """
    from zsjax.models.checkpoints.hf import save_hf
    from zsjax.parallel.checkpoint import Checkpointer
    from zsjax.rl.learner import Learner
    from zsjax.rl.steering import Steering
    from zsjax.rollout.reranking import Reranking

    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; choose another folder or remove it")
    with Writer(None) as writer:
        context = Run(config, workdir, writer, "")
        if build.checkpoint_exists(context.path("models/policy")):
            model, params = context.policy("policy")
        else:
            folder = workdir / "checkpoints" / "train"
            if not folder.is_dir():
                raise UserError(f"{workdir} has neither models/policy nor checkpoints/train: train first")
            model, params = context.start_policy()
            # Over all devices that can share it: the checkpoint has the optimizer's state, too.
            devices = jax.devices()[:math.gcd(jax.device_count(), model.embed_dim)]
            on = mesh.make_mesh({"fsdp": -1}, devices)
            learner = Learner(config, model, on)
            reranks = config.search.rerank.candidates > 0
            steering = Steering(config, on, reranking=Reranking(model, context.tokenizer, config) if reranks else None)
            template = steering.start(learner.start(params))
            with Checkpointer(folder) as checkpoints:
                step = checkpoints.latest_step  # named: a run may be writing, and nothing is set aside
                if step is None:
                    raise UserError(f"{folder} holds no complete checkpoint: train first")
                restored = checkpoints.restore(template, step)
            params = learner.export(restored[1])
        save_hf(out, model, params, tokenizer=context.tokenizer)
    return out
