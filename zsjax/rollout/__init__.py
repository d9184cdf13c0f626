"""Rollouts: questions in, finished episodes out."""

import dataclasses
import logging

from zsjax.parallel.mesh import local_mesh, simulator_mesh
from zsjax.rollout import compiled
from zsjax.rollout.draws import draw_tokens
from zsjax.rollout.environment import environment, tables
from zsjax.rollout.growing_cache import GrowingRollout
from zsjax.rollout.host import HostRollout
from zsjax.rollout.reranking import HostReranker
from zsjax.rollout.rollout import Rollout
from zsjax.rollout.schedule import Schedule
from zsjax.rollout.searching import SimulatorSearch, TextSearch
from zsjax.search.simulator.simulator import Simulator

__all__ = ["Rollout", "make_rollout"]


def make_rollout(policy_config, engine, tokenizer, config, mesh=None, *, group_size: int = 1, watch=None,
                 sampler=draw_tokens) -> Rollout:
    """Makes the rollout that fits the engine.

    A `Simulator` with the policy's tokenizer runs in one compiled program with the policy, or in a program of its own
    where config.mesh gives it devices. Every other engine, and an action with a `run`, is driven from the host.

    Args:
      policy_config: DecoderConfig of the policy.
      engine: a `Simulator`, or any object with `search(queries, contexts, *, k)`.
      tokenizer: the policy's.
      config: `zsjax.config.Config`; rollout, search, prompts and, where a mesh is given, mesh.simulator_devices are read.
      mesh: None, or a mesh; questions are sharded over its axes ("data", "fsdp"). Each device, or group of devices along
        tensor, plays its own questions. The mesh may span hosts, which exchange their episodes.
      group_size: episodes of each question; the prompt is read once.
      watch: called with the `RolloutState` after every refill, generation and insertion. The host then drives the
        rollout for every engine.
      sampler: draws the policy's tokens, see `draws.draw_tokens`.
    """
    env = environment(policy_config, tokenizer, config, group_size, sampler)
    policy_tables = tables(tokenizer, policy_config, env.actions)
    schedule = Schedule(config.rollout.rows, config.rollout.simulator_slots, config.rollout.decode_threshold)
    local = None if mesh is None else local_mesh(mesh)
    apart = None if mesh is None else simulator_mesh(config.mesh)
    same_tokens = isinstance(engine, Simulator) and engine.tokenizer is tokenizer
    on_host = any(action.run for action in env.actions)
    if same_tokens and watch is None and apart is None and not on_host:
        static = compiled.Static(env, schedule, engine)
        program = (compiled.compiled_program(static, local) if config.rollout.capacities == 1 else
                   GrowingRollout(static, local, config.rollout.capacities))
        player = compiled.CompiledRollout(program, policy_tables, engine, local)
    else:
        if isinstance(engine, Simulator) and not same_tokens:
            logging.info("the simulator has its own tokenizer: documents go through text on the host")
        if same_tokens and not on_host:
            search = SimulatorSearch(engine, apart or local, schedule, num_shown=env.num_documents,
                                     prefill_batch=env.prefill_batch, in_threads=apart is not None)
        else:
            if isinstance(engine, Simulator) and config.search.rerank.candidates:
                engine = dataclasses.replace(engine, shuffle_documents=False)  # the reranker wants the order of writing
            search = TextSearch(engine, tokenizer, config.search.document_format, num_documents=env.num_documents,
                                max_document_tokens=env.max_document_tokens, actions=env.actions,
                                reranker=HostReranker(config, tokenizer))
        player = HostRollout(env, schedule, policy_tables, search, local, watch, visit_every=config.rollout.visit_every,
                             search_batches=config.rollout.search_batches)
    return Rollout(policy_config, tokenizer, config, player, mesh, group_size=group_size)
