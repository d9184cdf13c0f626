"""The compiled rollout with random models: a script decides where tags are completed and lines end.

Everything runs as in training (`zsjax.rollout.compiled.compiled_program`), except that tables of the script say which
tokens complete a tag. A random model draws nearly uniformly, so a token below V * h is drawn with probability h. Lengths
then follow the distribution with hazard h at each position.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zsjax import types
from zsjax.rollout import compiled
from zsjax.rollout.environment import Environment, PolicyTables
from zsjax.rollout.played import occupancy
from zsjax.rollout.schedule import Schedule
from zsjax.sampling.tags import TagAutomaton
from zsjax.search.simulator.prompt import SimulatorTemplate
from zsjax.search.simulator.simulator import Simulator
from zsjax.search.simulator.writing import SimulatorTables

OPEN_SEARCH, CLOSE_SEARCH, OPEN_ANSWER, CLOSE_ANSWER = range(1, 5)  # events of `zsjax.rollout.actions.ACTIONS`
NEWLINE = 2  # drawn never, written where a document is cut
INSTRUCTIONS = 120  # tokens of the simulator's prompt that all requests share
ANSWERS, QUERY, WORDS = 6, 32, 2  # tokens of the gold answers, of a query, of the mode and the number of documents


@flax.struct.dataclass
class Script(TagAutomaton):
    """An automaton whose state is the number of tokens since the turn began.

    Attributes:
      search_below, answer_below: int32[N], by state: a token under the first closes a search, under the second an answer.
    """

    search_below: Any = None
    answer_below: Any = None

    def step(self, state, tokens):
        known, at = self._known(tokens)
        last = len(self.search_below) - 1
        event = jnp.where(at < self.search_below[state], CLOSE_SEARCH,
                          jnp.where(at < self.answer_below[state], CLOSE_ANSWER, 0))
        event = jnp.select([state == 0, state == 1], [OPEN_SEARCH, OPEN_ANSWER], event)
        return (jnp.where(known, jnp.minimum(state + 1, last), 0).astype(jnp.int32),
                jnp.where(known, event, 0).astype(jnp.int8))

    def _states(self, tokens):
        at = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        return jnp.broadcast_to(jnp.minimum(at, len(self.search_below) - 1), tokens.shape)


class Words:
    """A tokenizer with a token for each word; only the newline's id has a meaning."""

    newline_id = NEWLINE

    def __init__(self, vocab_size: int):
        self.vocab_size, self.eos_ids, self.bos_ids = vocab_size, (), ()

    def encode(self, text: str) -> list[int]:
        return [NEWLINE] if text == "\n" else [3 + i for i, _ in enumerate(text.split())]

    encode_text = encode


class SilentSimulator(Simulator):
    """A simulator whose tables are inputs of the program."""

    tables = None


def scripted_rollout(config, params, w, rng):
    """A function that plays a batch and returns {"tokens" of the policy, "trajectories", and the shares of its work}.

    w: see benchmarks/rollout.py.
    """
    play = scripted_episodes(config, params, w, rng)

    def run():
        played = play()
        episodes = played.episodes
        trajectories = [_turns(roles, length) for roles, length in zip(episodes.roles, episodes.length, strict=True)]
        return {"tokens": int((episodes.roles == types.POLICY).sum()), "trajectories": trajectories,
                "documents": int((episodes.roles == types.DOCUMENT).sum()), **occupancy(played)}

    return run


def scripted_episodes(config, params, w, rng):
    """A function that plays a batch and returns `Played`, on the host.

    w: see benchmarks/rollout.py. Both models are the same parameters, as in the peers.
    """
    V, k = config.vocab_size, w.get("documents", 1)
    document_tokens = w["document_tokens"]
    budget = w["turn_tokens"]
    answers = w.get("answer_share", 0.0)
    hazard = np.zeros(budget) if "turn_lengths" not in w else _hazard(w["turn_lengths"], budget)
    if "turn_lengths" not in w:
        hazard[-1] = 1.0
    one = jnp.zeros((1, 1), jnp.int32)
    flat = dict(next_state=one.astype(jnp.int16), event=one.astype(jnp.int8), event_tail=one.astype(jnp.int16),
                token_bytes_len=jnp.ones(V, jnp.int32), blank=jnp.zeros(V, bool), stripped_len=jnp.ones(V, jnp.int32),
                cut_row=jnp.full(V, -1, jnp.int32), before_ids=one, before_len=one[0], after_ids=one, after_len=one[0],
                alone_ids=one, alone_len=one[0])
    closes = np.round(V * hazard).astype(np.int32)
    script = Script(**flat, tags=("<", ">", "[", "]"), search_below=jnp.array(closes * (1 - answers), jnp.int32),
                    answer_below=jnp.array(closes, jnp.int32))
    none = jnp.zeros(V, bool)
    ends_line = none.at[NEWLINE].set(True)
    if "line_tokens" in w:
        ends_line = ends_line.at[3:3 + round(V / w["line_tokens"])].set(True)
    never = jnp.zeros((1, V), jnp.int8).at[0, NEWLINE].set(1)  # the mask over the vocabulary that a simulator pays for
    automaton = TagAutomaton(**{**flat, "event": never, "next_state": jnp.zeros((1, V), jnp.int16),
                                "event_tail": jnp.zeros((1, V), jnp.int16)}, tags=("<",))
    simulator_tables = SimulatorTables(automaton=automaton, ends_line=ends_line, blank=none, eos=none, special=none)

    tokenizer = Words(V)
    question_tokens = w["simulator_prompt"] - INSTRUCTIONS - WORDS - ANSWERS - QUERY
    simulator = SilentSimulator(
        config=config, params=params, tokenizer=tokenizer, num_documents=k, max_document_tokens=document_tokens,
        template=SimulatorTemplate(
            "scripted", "word " * INSTRUCTIONS + "{mode} {num_documents} {question} {answers} {query}"),
        max_query_tokens=QUERY, max_question_tokens=question_tokens, max_answer_tokens=ANSWERS, temperature=1.0)
    questions = w["batch"] // w.get("group", 1)
    empty = np.zeros(0, np.int32)
    env = Environment(
        policy=config, max_turns=w["turns"], max_turn_tokens=budget, max_tokens=w["max_tokens"], max_query_tokens=QUERY,
        num_documents=k, max_document_tokens=document_tokens, information_open=empty, information_close=empty,
        hint=np.full(8, 3, np.int32), group_size=w.get("group", 1), prefill_batch=w.get("prefill_batch"))

    def random_ids(size):
        return rng.integers(3, V, (questions, size)).astype(np.int32), np.full(questions, size, np.int32)

    prompts, lengths = random_ids(w["prompt"])
    asked = {"prompts": prompts, "prompt_lengths": lengths, "turn": np.zeros(questions, np.int32),
             "group_id": np.arange(questions, dtype=np.int32), "question": random_ids(question_tokens),
             "answers": random_ids(ANSWERS), "question_key": np.arange(questions, dtype=np.uint32)}
    schedule = Schedule(rows=w.get("rows", 0), slots=w.get("slots", 0), decode_threshold=w.get("decode_threshold", 0.0))
    program = compiled.compiled_program(compiled.Static(env, schedule, simulator), None)
    policy_tables = PolicyTables(automaton=script, eos=none)

    def play():
        return jax.device_get(program(compiled.Inputs(
            params, params, policy_tables, simulator_tables, noise=jnp.float32(0.0), temperature=jnp.float32(1.0),
            key=jax.random.key(0)), asked))

    return play


def _hazard(lengths, budget):
    """P(a turn ends with token i + 1 | it has i tokens), of given lengths; the opening tags take two tokens."""
    ends = np.bincount(np.clip(lengths, 3, budget) - 1, minlength=budget).astype(float)
    left = ends[::-1].cumsum()[::-1]
    return np.divide(ends, left, out=np.ones(budget), where=left > 0)


def _turns(roles, length):
    """[(policy tokens, document tokens), ...] of a row."""
    spans = []
    for role in roles[:length]:
        if role == types.POLICY:
            if not spans or spans[-1][1]:
                spans.append([0, 0])
            spans[-1][0] += 1
        elif role != types.PROMPT:
            spans[-1][1] += 1
    return spans
