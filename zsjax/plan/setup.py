"""The subject of a plan: the models' shapes, the mesh, the counts of rows and tokens; without weights or devices."""

import dataclasses
import pathlib

import jax

from zsjax.config import Config, ModelConfig
from zsjax.data.assets import asset_path
from zsjax.errors import UserError
from zsjax.models.checkpoints.hub import PREFIX
from zsjax.models.families import PRESETS, find_preset, read_config
from zsjax.models.layers import DecoderConfig
from zsjax.parallel.constrain import AXES
from zsjax.parallel.mesh import mesh_shape
from zsjax.plan.targets import PlanTarget
from zsjax.rl import packing
from zsjax.rollout import growing_cache
from zsjax.rollout.actions import load_actions
from zsjax.rollout.schedule import Schedule
from zsjax.run import build
from zsjax.search import registry
from zsjax.search.simulator.simulator import Simulator

STAND_IN = "asset:real/tokenizer"  # of Qwen2's kind, with a smaller vocabulary


@dataclasses.dataclass(frozen=True)
class PlanSetup:
    """A run on a target. Counts are of rows, or of tokens a row.

    Attributes:
      mesh: sizes only, no devices.
      policy, simulator: None where a real engine answers the searches.
      engine: the simulator without parameters, which knows its prompt; its tokenizer may be the stand-in.
      stand_in: whether the config's tokenizer is not on this machine.
    """

    config: Config
    target: PlanTarget
    mesh: jax.sharding.AbstractMesh
    policy: DecoderConfig
    simulator: DecoderConfig | None
    engine: Simulator | None
    stand_in: bool

    @property
    def shards(self) -> int:
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def tensor(self) -> int:
        return self.mesh.shape["tensor"]

    @property
    def questions(self) -> int:
        """Per shard, those that fill up the shape included."""
        return -(-self.config.train.questions_per_step // self.shards)

    @property
    def rollout_rows(self) -> int:
        return self.questions * self.config.train.group_size

    @property
    def schedule(self) -> Schedule:
        rollout = self.config.rollout
        return Schedule(rollout.rows, rollout.simulator_slots, rollout.decode_threshold)

    @property
    def capacities(self) -> list[int]:
        """Slots of a row in the policy's cache, one after the other."""
        rollout = self.config.rollout
        return growing_cache.capacities(rollout.capacities, rollout.max_prompt_tokens + 1, rollout.max_tokens)

    @property
    def update_rows(self) -> int:
        """Per shard and update, of all microbatches."""
        return self.minibatch_rows // self.shards

    @property
    def minibatch_rows(self) -> int:
        """Of all shards: what `train.keep_fraction` leaves, in `train.minibatches` parts."""
        train = self.config.train
        kept = round(train.keep_fraction * train.questions_per_step * train.group_size)
        return kept // train.minibatches

    @property
    def scored_rows(self) -> int:
        """Per shard, of a whole step."""
        return self.config.train.questions_per_step * self.config.train.group_size // self.shards

    def micro_rows(self, rows: int) -> int:
        """Of `rows` rows of a shard, those that a pass holds the activations of at a time."""
        train = self.config.train
        if train.microbatch_tokens:
            return packing.rows_within(train.microbatch_tokens, self.config.rollout.max_tokens, self.shards) // self.shards
        return min(train.microbatch_rows // self.shards or rows, rows)

    @property
    def simulator_rows(self) -> int:
        """Rows of the simulator's cache: two a slot where each document has a mode of its own."""
        copies = 2 if self.config.search.noise_per == "document" else 1
        return copies * self.schedule.sizes(self.rollout_rows)[1]

    @property
    def document_tokens(self) -> int:
        """That one search adds to a row at most; the tags around are few."""
        return self.config.search.num_documents * self.config.search.max_document_tokens

    @property
    def reply_steps(self) -> int:
        search = self.config.search
        return search.num_candidates * (search.max_document_tokens + 1)


def driven_by_host(setup: PlanSetup) -> str:
    """Why the rollout is not one program on the device, "" where it is (`zsjax.rollout.make_rollout`)."""
    engine = setup.config.search.engine
    if engine != "simulator":
        return f"search.engine = {engine!r} searches on the host"
    running = [action.name for action in load_actions(setup.config.rollout.actions) if action.run]
    return f"rollout.actions: {', '.join(running)} runs on the host" if running else ""


def not_counted(setup: PlanSetup) -> tuple[str, ...]:
    """What a step of `train`, or its run, does beyond the plan's figures."""
    config, found = setup.config, ["the evaluations every train.eval_every steps"]
    if why := driven_by_host(setup):
        found.append(f"the time of the searches, and the programs of the rollout: {why}. Its memory is estimated")
    if config.search.rerank.candidates:
        found.append("the program that finds the shown documents in the episodes for the reranker")
    if config.algorithm.scorers:
        found.append(f"the models of algorithm.scorers: {', '.join(config.algorithm.scorers)}")
    if stages := [stage for stage in config.stages if stage not in ("train", "report")]:
        found.append(f"the stages {', '.join(stages)}")
    return tuple(found)


def make_setup(config: Config, target: PlanTarget) -> PlanSetup:
    """Raises UserError where a model's shape cannot be known."""
    if config.mesh.simulator_devices:
        raise UserError(f"mesh.simulator_devices = {config.mesh.simulator_devices}: the plan knows only a simulator on the "
                        "policy's devices; set it to 0 to plan for that")
    simulated = "simulator" in registry.needs(config.search.engine, config.search)  # mixed: all its searches
    try:
        tokenizer, stand_in = build.tokenizer(config) if _is_here(config.tokenizer) else None, False
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer = {config.tokenizer!r} cannot be read: {error}") from error
    if tokenizer is None:
        tokenizer, stand_in = build.tokenizer(dataclasses.replace(config, tokenizer=STAND_IN)), True
    policy = model_shape(config.policy, "policy", tokenizer)
    simulator = model_shape(config.simulator, "simulator", tokenizer) if simulated else None
    mesh = jax.sharding.AbstractMesh(mesh_shape(config.mesh, target.devices), AXES)
    try:
        engine = build.simulator(config, simulator, None, tokenizer) if simulated else None
    except ValueError as error:  # vocabularies that do not fit
        raise UserError(str(error)) from error
    return PlanSetup(config, target, mesh, policy, simulator, engine, stand_in)


def model_shape(model: ModelConfig, field: str, tokenizer) -> DecoderConfig:
    """The decoder's shape: given, read from a local config.json, or known by the checkpoint's name."""
    if model.init == "random":
        return DecoderConfig(**({"vocab_size": tokenizer.vocab_size} | dict(model.shape)), dtype=model.dtype)
    if _is_here(model.init):
        try:
            return dataclasses.replace(read_config(asset_path(model.init)), dtype=model.dtype)
        except (OSError, ValueError) as error:
            raise UserError(f"{field}.init = {model.init!r}: {error}") from error
    known = find_preset(model.init)
    if known is None:
        raise UserError(f"{field}.init = {model.init!r} is not on this machine, and the plan does not know its shape; "
                        f"use one of {', '.join(PRESETS)}")
    return dataclasses.replace(known, dtype=model.dtype)


def _is_here(path: str) -> bool:
    return path.startswith("asset:") or (not path.startswith(PREFIX) and pathlib.Path(path).exists())
