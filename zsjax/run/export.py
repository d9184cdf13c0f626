"""A run's policy: the trained one, or that of its newest checkpoint; and the same as a Hugging Face folder."""

import math
import pathlib
from typing import NamedTuple

import jax

from zsjax.config import Config
from zsjax.errors import UserError
from zsjax.models.decoder import DecoderConfig
from zsjax.monitor.writer import Writer
from zsjax.parallel import mesh
from zsjax.run import build
from zsjax.run.stages.context import Run


class TrainedPolicy(NamedTuple):
    """A decoder and its parameters, adapters merged; source: where they come from, for messages."""

    model: DecoderConfig
    params: dict
    source: str


def export(config: Config, workdir, out) -> pathlib.Path:
    """Writes the trained policy, or that of the newest checkpoint, to a Hugging Face folder `out`.

    Raises:
      UserError: the run has no policy yet, or `out` exists.
    """
    from zsjax.models.checkpoints.hf import save_hf

    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; choose another folder or remove it")
    with Writer(None) as writer:
        run = Run(config, workdir, writer, "")
        found = trained_policy(run)
        if found is None:
            raise UserError(f"{workdir} has neither models/policy nor a checkpoint in checkpoints/train: train first")
        save_hf(out, found.model, found.params, tokenizer=run.tokenizer)
    return out


def trained_policy(run: Run) -> TrainedPolicy | None:
    """The policy of models/policy, else of the newest checkpoint of training; None before the first one.

    Raises:
      UserError: the checkpoint is damaged or does not fit the config.
    """
    made = run.path("models/policy")
    if build.checkpoint_exists(made):
        return TrainedPolicy(*run.policy("policy"), str(made))
    folder = run.path("checkpoints/train")
    if not folder.is_dir():
        return None
    from zsjax.parallel.checkpoint import Checkpointer

    with Checkpointer(folder) as checkpoints:
        step = checkpoints.latest_step  # named: a run may be writing, and nothing is set aside
        return None if step is None else _of_checkpoint(run, checkpoints, step)


def _of_checkpoint(run, checkpoints, step) -> TrainedPolicy:
    from zsjax.rl.learner import Learner
    from zsjax.rl.steering import Steering
    from zsjax.rollout.reranking import Reranking

    config, (model, params) = run.config, run.start_policy()
    # Over all devices that can share it: the checkpoint has the optimizer's state, too.
    shared = mesh.make_mesh({"fsdp": -1}, jax.devices()[:math.gcd(jax.device_count(), model.embed_dim)])
    learner = Learner(config, model, shared)
    reranks = config.search.rerank.candidates > 0
    steering = Steering(config, shared, reranking=Reranking(model, run.tokenizer, config) if reranks else None)
    restored = checkpoints.restore(steering.start(learner.start(params)), step, donate=True)
    # Adapters are merged on one device: a product that is cut over several rounds otherwise.
    learner.frozen, trained = jax.device_put((learner.frozen, restored[1].params), jax.devices()[0])
    merged = learner.export(restored[1].replace(params=trained))
    return TrainedPolicy(model, merged, str(run.path("checkpoints/train") / str(step)))
