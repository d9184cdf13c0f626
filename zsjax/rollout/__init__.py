"""Rollouts: questions in, finished episodes out.

`make_rollout` looks at the engine: a `Simulator` that shares the policy's tokenizer runs with the policy in one compiled
program, or as a program of its own beside it where it has devices to itself; everything else is driven from the host, with
the same compiled pieces.
"""

import functools
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.errors import InputError
from zsjax.models.placement import for_decoding
from zsjax.parallel import hosts
from zsjax.parallel.constrain import over_rows, row_shards
from zsjax.parallel.mesh import local_mesh, local_row_shards, simulator_mesh
from zsjax.rollout import compiled
from zsjax.rollout import state as pieces
from zsjax.rollout.growing import GrowingRollout
from zsjax.rollout.host import HostRollout
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.rollout.reranking import HostReranker
from zsjax.rollout.searching import SimulatorSearch, TextSearch
from zsjax.search.simulator.requests import question_keys
from zsjax.search.simulator.simulator import Simulator


def make_rollout(policy_config, engine, tokenizer, config, mesh=None, *, group_size: int = 1, watch=None):
    """A function that plays one episode per question and group member.

    Args:
      policy_config: DecoderConfig of the policy.
      engine: a `Simulator`, or any object with `search(queries, contexts, *, k)`.
      tokenizer: the policy's.
      config: `zsjax.config.Config`; rollout, search, prompts and, where a mesh is given, mesh.simulator_devices are read.
      mesh: None, or a mesh whose ("data", "fsdp") axes the questions are spread over: each device, or group of devices
        along tensor, plays its own. The mesh may span hosts, which then play their own questions and exchange episodes.
      group_size: episodes per question; the prompt is read once.
      watch: called with the `RolloutState` after every seating, generation and insertion; the rollout is then driven from
        the host, whatever the engine.

    Returns:
      rollout(params, questions, *, noise=0.0, key, temperature=None, group_ids=None, prefixes=None, with_work=False,
      reranker=None) -> Episodes of len(questions) * group_size rows, a question's next to each other. group_ids int32[Q]
      name the questions in the random streams (default 0 .. Q-1); temperature None is the config's, 0 is greedy. prefixes:
      for each question (ids, turns) of an episode under way, which is gone on with: its ids count as prompt. with_work:
      (Episodes, `compiled.Work`) instead. reranker: weights of `zsjax.search.rerank`, which choose from the
      config.search.rerank.candidates documents that are then written or found. `rollout.tokenizer` is the one given. params
      may lie anywhere on the mesh: they are moved to where decoding reads them, which `rollout.reshard_seconds` adds up; for
      several rollouts, move them once by `rollout.place(params)`. With many hosts, everyone
      calls with all questions and the Episodes, numpy, are all of them on each.
      Raises ValueError when a prompt is longer than config.rollout.max_prompt_tokens: prompts are never cut.
    """
    template = PolicyTemplate.load(config.prompts.policy)
    _tell_form(template.name, config.prompts.chat)
    env = environment(policy_config, tokenizer, config, group_size)
    tables = pieces.tables(tokenizer, policy_config)
    schedule = compiled.Schedule(config.rollout.rows, config.rollout.simulator_slots, config.rollout.busy)
    local = None if mesh is None else local_mesh(mesh)
    apart = None if mesh is None else simulator_mesh(config.mesh)
    same_tokens = isinstance(engine, Simulator) and engine.tokenizer is tokenizer
    if same_tokens and watch is None and apart is None:
        program = (compiled_program(env, schedule, engine, local) if config.rollout.capacities == 1 else
                   GrowingRollout(env, schedule, engine, local, config.rollout.capacities))
        play = _compiled(program, tables, engine, local)
    else:
        if isinstance(engine, Simulator) and not same_tokens:
            logging.info("the simulator has its own tokenizer: documents go through text on the host")
        if same_tokens:
            search = SimulatorSearch(engine, apart or local, schedule, num_shown=env.num_documents, lanes=env.lanes,
                                     in_threads=apart is not None)
        else:
            search = TextSearch(engine, tokenizer, config.search.document_format, num_documents=env.num_documents,
                                max_document_tokens=env.max_document_tokens, reranker=HostReranker(config, tokenizer))
        play = HostRollout(env, schedule, tables, search, local, watch, visit_every=config.rollout.visit_every,
                           search_batches=config.rollout.search_batches)

    def begin(questions, prefixes, group_ids):
        """What episodes begin with, for `read_prompts`."""
        if prefixes is None:
            prompts = encode_prompts(template, tokenizer, questions, config.rollout.max_prompt_tokens, config.prompts.chat)
        else:
            prompts = _pad([ids for ids, _ in prefixes], config.rollout.max_tokens)
        return {"prompts": prompts[0], "prompt_lengths": prompts[1],
                "turn": np.array([turns for _, turns in prefixes or [((), 0)] * len(questions)], np.int32),
                "group_id": np.asarray(np.arange(len(questions)) if group_ids is None else group_ids, np.int32)}

    def rollout(params, questions, *, noise=0.0, key, temperature=None, group_ids=None, prefixes=None, with_work=False,
                reranker=None):
        temperature = jnp.float32(config.rollout.temperature if temperature is None else temperature)
        params = place(params)
        inputs = begin(questions, prefixes, group_ids)
        count, shards = len(questions), row_shards(mesh)
        parts = np.split(np.arange(count + -count % shards), shards)
        my_shards = range(shards) if local is mesh else local_row_shards(mesh)
        mine = np.concatenate([parts[shard] for shard in my_shards])
        # Questions that only fill up the shape are the last one again; their rows are dropped.
        asked = np.minimum(mine, count - 1)
        here = {name: x[asked] for name, x in inputs.items()}
        episodes, work = play(params, here, [questions[i] for i in asked], jnp.float32(noise), temperature, key,
                              reranker)
        if local is not mesh:
            rows = (mine[:, None] * group_size + np.arange(group_size)).ravel()
            played, work = jax.device_get((episodes, work))
            episodes, work = hosts.gather_rows(played, rows), hosts.gather_rows(work, my_shards)
        if count % shards:
            episodes = jax.tree.map(lambda x: x[:count * group_size], episodes)
        return (episodes, work) if with_work else episodes

    def place(params):
        start, placed = time.perf_counter(), for_decoding(params, policy_config, mesh)
        if placed is not params:
            jax.block_until_ready(placed)
            rollout.reshard_seconds += time.perf_counter() - start
        return placed

    rollout.tokenizer, rollout.place, rollout.reshard_seconds = tokenizer, place, 0.0
    return rollout


def environment(policy_config, tokenizer, config, group_size: int = 1) -> pieces.Environment:
    """What is fixed for the rollouts of a run: budgets, and the texts the environment inserts in the policy's tokens."""
    template = PolicyTemplate.load(config.prompts.policy)
    encode = lambda text: np.array(tokenizer.encode(text), np.int32)
    return pieces.Environment(
        policy=policy_config.for_tokenizer(tokenizer),
        max_turns=config.rollout.max_turns,
        max_turn_tokens=config.rollout.max_turn_tokens,
        max_tokens=config.rollout.max_tokens,
        max_query_tokens=config.search.max_query_tokens,
        num_documents=config.search.num_documents,
        max_document_tokens=config.search.max_document_tokens,
        information_open=encode(template.information_open),
        information_close=encode(template.information_close),
        hint=encode(template.hint),
        group_size=group_size,
        lanes=config.rollout.lanes or None,
        noise_per_document=config.search.noise_per == "document",
        cache_dtype=config.policy.cache_dtype,
    )


@functools.cache  # once a run, not once for each of its rollouts
def _tell_form(template: str, chat: bool):
    form = "in the tokenizer's chat template" if chat else "as plain text (an instruct model wants prompts.chat=true)"
    logging.info("policy prompts: template %r %s", template, form)


def encode_prompts(template, tokenizer, questions, size: int, chat: bool = False):
    """(int32[Q, size], int32[Q]) prompts of questions; ValueError names the question whose prompt is too long."""
    tokens, lengths = np.zeros((len(questions), size), np.int32), np.zeros(len(questions), np.int32)
    for i, question in enumerate(questions):
        ids = template.encode(tokenizer, question.question, chat=chat)
        if len(ids) > size:
            raise InputError(f"the prompt of question {question.id!r} has {len(ids)} tokens; raise "
                             f"rollout.max_prompt_tokens from {size}, prompts are never cut")
        tokens[i, :len(ids)], lengths[i] = ids, len(ids)
    return tokens, lengths


def _pad(rows, size):
    """(int32[Q, size], int32[Q]) of lists of ids."""
    tokens = np.zeros((len(rows), size), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[:len(ids)] = ids
    return tokens, np.array([len(ids) for ids in rows], np.int32)


def compiled_program(env, schedule, simulator: Simulator, mesh):
    """The whole rollout as one jitted program; its arguments are those of `program` below, parameters as
    `for_decoding` gives them."""
    def program(policy_params, simulator_params, tables, simulator_tables, inputs, noise, temperature, key, reranker=None):
        return compiled.play(policy_params, simulator_params, env, schedule, tables, simulator, simulator_tables, inputs,
                               noise, temperature, key, reranker)

    in_rows = (False, False, False, False, True, False, False, False, False)
    return jax.jit(over_rows(program, mesh, in_rows))


def _compiled(program, tables, simulator: Simulator, mesh):
    simulator_params = None

    def play(params, inputs, questions, noise, temperature, key, reranker):
        nonlocal simulator_params
        if simulator_params is None:
            simulator_params = for_decoding(simulator.params, simulator.config, mesh)
        question, answers = simulator.encode_questions(questions)
        inputs = dict(inputs, question=question, answers=answers, question_key=question_keys(questions))
        return program(params, simulator_params, tables, simulator.tables, inputs, noise, temperature, key, reranker)

    return play
