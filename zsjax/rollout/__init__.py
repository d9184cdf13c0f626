"""Rollouts: questions in, finished episodes out.

`make_rollout` looks at the engine: a `Simulator` that shares the policy's tokenizer runs with the policy in one compiled
program; everything else is driven from the host, with the same compiled pieces.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from zsjax.rollout import engine as pieces
from zsjax.rollout.host import HostRollout
from zsjax.rollout.prompts import PolicyTemplate
from zsjax.search.simulator import Simulator, question_keys


def make_rollout(policy_config, engine, tokenizer, config, mesh=None, *, group_size: int = 1, watch=None):
    """A function that plays one episode per question and group member.

    Args:
      policy_config: DecoderConfig of the policy.
      engine: a `Simulator`, or any object with `search(queries, contexts, *, k)`.
      tokenizer: the policy's.
      config: `zsjax.config.Config`; rollout, search and prompts are read.
      mesh: None, or a mesh whose ("data", "fsdp") axes the questions are spread over; each device plays its own.
        Compiled rollouts only.
      group_size: episodes per question; the prompt is read once.
      watch: called with the `RolloutState` after every generation and insertion; the rollout is then driven from the host,
        whatever the engine.

    Returns:
      rollout(params, questions, *, noise=0.0, key, temperature=None, group_ids=None, prefixes=None) -> Episodes of
      len(questions) * group_size rows, a question's next to each other. group_ids int32[Q] name the questions in the
      random streams (default 0 .. Q-1); temperature None is the config's, 0 is greedy. prefixes: for each question (ids,
      turns) of an episode under way, which is gone on with: its ids count as prompt. `rollout.tokenizer` is the one given.
      Raises ValueError when a prompt is longer than config.rollout.max_prompt_tokens: prompts are never cut.
    """
    template = PolicyTemplate.load(config.prompts.policy)
    encode = lambda text: np.array(tokenizer.encode(text), np.int32)
    env = pieces.Environment(
        policy=policy_config,
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
    )
    tables = pieces.tables(tokenizer, policy_config)
    compiled = isinstance(engine, Simulator) and engine.tokenizer is tokenizer and watch is None
    if compiled:
        play = _compiled(env, tables, engine, mesh)
    else:
        if isinstance(engine, Simulator) and engine.tokenizer is not tokenizer:
            logging.info("the simulator has its own tokenizer: documents go through text on the host")
        play = HostRollout(env, tables, engine, tokenizer, config.search.document_format, watch)

    def rollout(params, questions, *, noise=0.0, key, temperature=None, group_ids=None, prefixes=None):
        if prefixes is None:
            prompts = encode_prompts(template, tokenizer, questions, config.rollout.max_prompt_tokens, config.prompts.chat)
        else:
            prompts = _pad([tokens for tokens, _ in prefixes], config.rollout.max_tokens)
        ids = np.arange(len(questions), dtype=np.int32) if group_ids is None else np.asarray(group_ids, np.int32)
        inputs = {"prompts": prompts[0], "prompt_lengths": prompts[1], "group_id": ids}
        if prefixes is not None:
            inputs["turn"] = np.array([turns for _, turns in prefixes], np.int32)
        temperature = config.rollout.temperature if temperature is None else temperature
        return play(params, inputs, questions, jnp.float32(noise), jnp.float32(temperature), key)

    rollout.tokenizer = tokenizer
    return rollout


def encode_prompts(template, tokenizer, questions, size: int, chat: bool = False):
    """(int32[Q, size], int32[Q]) prompts of questions; ValueError names the question whose prompt is too long."""
    tokens, lengths = np.zeros((len(questions), size), np.int32), np.zeros(len(questions), np.int32)
    for i, question in enumerate(questions):
        ids = template.encode(tokenizer, question.question, chat=chat)
        if len(ids) > size:
            raise ValueError(f"the prompt of question {question.id!r} has {len(ids)} tokens; raise "
                             f"rollout.max_prompt_tokens from {size}, prompts are never cut")
        tokens[i, :len(ids)], lengths[i] = ids, len(ids)
    return tokens, lengths


def _pad(rows, size):
    tokens = np.zeros((len(rows), size), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[:len(ids)] = ids
    return tokens, np.array([len(ids) for ids in rows], np.int32)


def _compiled(env, tables, simulator: Simulator, mesh):
    def program(policy_params, simulator_params, tables, simulator_tables, inputs, noise, temperature, key):
        return pieces.simulated(policy_params, simulator_params, env, tables, simulator, simulator_tables, inputs,
                                noise, temperature, key)

    if mesh is not None and mesh.size > 1:
        rows = P(("data", "fsdp"))
        # Every device loops over its own questions and stops when they are done; nothing is exchanged.
        program = jax.shard_map(program, mesh=mesh, in_specs=(P(), P(), P(), P(), rows, P(), P(), P()), out_specs=rows,
                                check_vma=False)
    program = jax.jit(program)

    def play(params, inputs, questions, noise, temperature, key):
        question, answers = simulator.encode_questions(questions)
        inputs = dict(inputs, question=question, answers=answers, question_key=question_keys(questions))
        return program(params, simulator.params, tables, simulator.tables, inputs, noise, temperature, key)

    return play
