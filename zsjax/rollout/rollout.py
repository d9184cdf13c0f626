"""A rollout: parameters and questions in, finished episodes out, on one device, a mesh or several hosts."""

import functools
import logging
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.errors import InputError
from zsjax.models.placement import for_decoding
from zsjax.parallel import hosts
from zsjax.parallel.constrain import row_shards
from zsjax.parallel.mesh import local_mesh, local_row_shards
from zsjax.rollout.played import Played
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.sampling import ragged
from zsjax.types import Episodes


class Rollout:
    """Plays an episode for each question and group member; `zsjax.rollout.make_rollout` makes one.

    Attributes:
      tokenizer: the policy's.
      reshard_seconds: seconds that `place` has spent on moving parameters.
    """

    def __init__(self, policy_config, tokenizer, config, player: Callable[..., Played], mesh=None, *, group_size: int = 1):
        """Arguments as in `make_rollout`.

        player: (params, inputs, questions, noise, temperature, key, reranker) -> Played, for this host's questions.
        """
        self.tokenizer, self.reshard_seconds = tokenizer, 0.0
        self._policy_config, self._config, self._player = policy_config, config, player
        self._mesh, self._local = mesh, None if mesh is None else local_mesh(mesh)
        self._group_size, self._template = group_size, PolicyTemplate.load(config.prompts.policy)
        _log_form(self._template.name, config.prompts.chat)

    def __call__(self, params, questions: Sequence, **options) -> Episodes:
        """The episodes of `play`, with the same arguments."""
        return self.play(params, questions, **options).episodes

    def play(self, params, questions: Sequence, *, noise=0.0, key, temperature=None, group_ids=None, prefixes=None,
             reranker=None) -> Played:
        """Plays len(questions) * group_size episodes. The episodes of a question are neighbours.

        With several hosts each calls with all questions and gets all episodes, as numpy.

        Args:
          params: of the policy, anywhere on the mesh: see `place`.
          questions: `types.Question`s.
          noise: float, P(a search, or a document, is noisy).
          key: of the step: draws depend on it, on the episode and on the token's position.
          temperature: float; None is the config's, 0 is greedy.
          group_ids: int32[Q], names of the questions in the random streams; None is 0 .. Q-1.
          prefixes: for each question (ids, turns) of an unfinished episode, which the rollout continues. The ids count
            as prompt and the turns against max_turns.
          reranker: weights of `zsjax.search.rerank`, which choose the documents to show from
            config.search.rerank.candidates; None shows the first.

        Raises:
          InputError: no questions; or a prompt is longer than config.rollout.max_prompt_tokens, or a prefix leaves no room
            within config.rollout.max_tokens. Neither is ever cut.
          Any error of the engine; with several hosts that of one is raised by all (`hosts.together`).
        """
        config = self._config
        temperature = jnp.float32(config.rollout.temperature if temperature is None else temperature)
        params = self.place(params)
        inputs = self._inputs(questions, prefixes, group_ids)
        count, shards = len(questions), row_shards(self._mesh)
        parts = np.split(np.arange(count + -count % shards), shards)
        one_host = self._local is self._mesh
        my_shards = range(shards) if one_host else local_row_shards(self._mesh)
        mine = np.concatenate([parts[shard] for shard in my_shards])
        # Copies of the last question fill the shape; their rows are dropped.
        asked = np.minimum(mine, count - 1)

        def play():
            return self._player(params, {name: x[asked] for name, x in inputs.items()}, [questions[i] for i in asked],
                                jnp.float32(noise), temperature, key, reranker)

        if one_host:
            played = play()
        else:  # an engine may fail on one host only
            played = hosts.together(lambda: jax.device_get(play()))
            rows = (mine[:, None] * self._group_size + np.arange(self._group_size)).ravel()
            played = Played(hosts.gather_rows(played.episodes, rows), hosts.gather_rows(played.work, my_shards))
        if count % shards:
            played = played.replace(episodes=jax.tree.map(lambda x: x[:count * self._group_size], played.episodes))
        return played

    def place(self, params):
        """The parameters where decoding reads them; parameters that are there already are not moved.

        Place them once for several rollouts.
        """
        start, placed = time.perf_counter(), for_decoding(params, self._policy_config, self._mesh)
        if placed is not params:
            jax.block_until_ready(placed)
            self.reshard_seconds += time.perf_counter() - start
        return placed

    def _inputs(self, questions, prefixes, group_ids) -> dict:
        """The inputs of `state.read_prompts`."""
        if not questions:
            raise InputError("no questions to play; give at least one")
        if prefixes is None:
            size = self._config.rollout.max_prompt_tokens
            prompts = encode_prompts(self._template, self.tokenizer, questions, size, self._config.prompts.chat)
        else:
            size = self._config.rollout.max_tokens
            for question, (ids, _) in zip(questions, prefixes, strict=True):
                if len(ids) >= size:
                    raise InputError(f"the beginning of question {question.id!r}'s episode has {len(ids)} tokens; raise "
                                     f"rollout.max_tokens from {size}")
            prompts = ragged.pad([ids for ids, _ in prefixes], size)
        return {"prompts": prompts[0], "prompt_lengths": prompts[1],
                "turn": np.array([turns for _, turns in prefixes or [((), 0)] * len(questions)], np.int32),
                "group_id": np.asarray(np.arange(len(questions)) if group_ids is None else group_ids, np.int32)}


def encode_prompts(template, tokenizer, questions, size: int, chat: bool = False):
    """(int32[Q, size], int32[Q]) prompts of questions.

    Raises:
      InputError: a prompt is longer than `size`; the message names the question.
    """
    rows = []
    for question in questions:
        rows.append(template.encode(tokenizer, question.question, chat=chat))
        if len(rows[-1]) > size:
            raise InputError(f"the prompt of question {question.id!r} has {len(rows[-1])} tokens; raise "
                             f"rollout.max_prompt_tokens from {size}, prompts are never cut")
    return ragged.pad(rows, size)


@functools.cache  # one line for all rollouts of a run
def _log_form(template: str, chat: bool):
    form = "in the tokenizer's chat template" if chat else "as plain text (an instruct model wants prompts.chat=true)"
    logging.info("policy prompts: template %r %s", template, form)
