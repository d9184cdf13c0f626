"""From requests to documents, in tokens: the searches that `zsjax.rollout.host` starts in threads.

`TextSearch` asks any engine in text. `SimulatorSearch` runs the simulator's compiled program on tokens. Both send equal
requests once. A result depends on the request alone, never on its batch or on the speed of a thread.
"""

import collections
import dataclasses
import functools
import logging
import threading
from typing import Any

import flax.struct
import jax
import numpy as np

from zsjax.errors import UserError
from zsjax.models.decoder import decoding_params
from zsjax.models.placement import for_decoding
from zsjax.parallel.constrain import over_rows, row_shards
from zsjax.parallel.mesh import replicated, reshard
from zsjax.rollout.actions import ACTIONS
from zsjax.rollout.documents import encode_documents
from zsjax.rollout.draws import per_document
from zsjax.search.engine import Failed, SearchContext, as_engine
from zsjax.search.rerank import chooser
from zsjax.search.simulator.requests import Requests, question_keys
from zsjax.search.simulator.simulator import Simulator
from zsjax.search.simulator.writing import Replies


@flax.struct.dataclass
class Asked:
    """A flat list of n requests, numpy. The owner of each is a row, its turn, and the place among the turn's queries."""

    row: Any  # int[n], of the rollout
    turn: Any  # int32[n]
    place: Any  # int[n]
    action: Any  # int[n], in the table of actions
    episode_id: Any  # int32[n]
    question: Any  # int[n], index of the rollout's question
    query: tuple[Any, Any]  # (int32[n, N], int32[n]), the policy's tokens
    noisy: Any  # bool[n], or bool[n, k] with one draw for each document

    def __len__(self):
        return len(self.row)

    def __getitem__(self, some: slice) -> "Asked":
        return jax.tree.map(lambda x: x[some], self)


@dataclasses.dataclass
class SearchResults:
    """The results of n requests, numpy."""

    replies: Replies  # of n; count -1: the search failed
    noisy: Any  # bool[n, k], the noise draws that the engine obeyed
    steps: int = 0  # decode steps of the simulator, summed over its groups of devices


class TextSearch:
    """Searches by an engine of text."""

    def __init__(self, engine, tokenizer, document_format: str, *, num_documents: int, max_document_tokens: int,
                 actions=ACTIONS, reranker=None):
        """Makes the search of a rollout.

        Args:
          engine: see `zsjax.search.engine.Engine`.
          tokenizer: the policy's.
          actions: the policy's table.
          reranker: a `HostReranker`, used in rollouts that have its weights.
        """
        self.actions = actions
        self.engine, self.tokenizer, self.document_format = as_engine(engine), tokenizer, document_format
        self.num_documents, self.max_document_tokens, self.reranker = num_documents, max_document_tokens, reranker
        self.slots = 0  # a simulator's program has some

    @property
    def in_threads(self) -> bool:
        return not self.engine.uses_devices

    def begin(self, questions, key, size: int, reranker=None):
        """Begins a rollout.

        Args:
          key: of the rollout.
          size: requests that its rows can make at a time.
          reranker: weights of `zsjax.search.rerank`, or None.

        Returns:
          (a function Asked -> SearchResults, the most requests of one call).
        """
        find = functools.partial(self._find, questions, reranker, jax.random.fold_in(key, 1), int(jax.random.bits(key)))
        return find, size

    def _find(self, questions, reranker, key, draw: int, asked: Asked) -> SearchResults:
        tokens, lengths = asked.query
        texts = [self.tokenizer.decode(row[:length].tolist()) for row, length in zip(tokens, lengths, strict=True)]
        actions = [self.actions[action] for action in asked.action]
        owners = zip(asked.question, actions, asked.episode_id, asked.turn, asked.place, strict=True)
        contexts = [SearchContext(questions[question], key=key, call=(draw, *map(int, call)), action=action.name)
                    for question, action, *call in owners]
        by_engine = np.array([action.run is None for action in actions])
        obeys = np.array(self.engine.obeys_noise(texts, contexts), bool) & by_engine
        noisy = per_document(asked.noisy, (len(texts), self.num_documents)) & obeys[:, None]
        try:
            results = self._ask(texts, contexts, noisy, reranker)
        except UserError:  # some are OSErrors too, but the user must fix them: they are no failed search
            raise
        except (OSError, TimeoutError) as error:  # the engine has no `Failed` of its own
            logging.warning("search failed for %d queries: %s", len(texts), error)
            results = [Failed("error") for _ in texts]
        kinds = collections.Counter(documents.kind for documents in results if isinstance(documents, Failed))
        if kinds:
            logging.warning("%d of %d searches failed: %s", kinds.total(), len(texts),
                            ", ".join(f"{kind} {count}" for kind, count in kinds.items()))
        encoded = encode_documents(results, self.tokenizer, self.document_format, num_documents=self.num_documents,
                                   max_document_tokens=self.max_document_tokens)
        return SearchResults(Replies(*encoded), noisy)

    def _ask(self, texts, contexts, modes, reranker):
        """A list of documents for each text.

        modes: bool[n, k]. Where the modes of a text differ, document i comes from the reply of mode modes[n, i], as in
          `Simulator.idle`. Equal searches are sent once and get the same list.
        """
        def name(row, mode):
            context = contexts[row]
            return (context.question.identity, context.action, texts[row], mode,
                    context.call if self.engine.by_call else ())

        asked = {}
        for row, of_row in enumerate(modes.tolist()):
            for mode in of_row:
                asked.setdefault(name(row, mode), (texts[row], dataclasses.replace(contexts[row], noisy=mode)))
        queries, contexts_asked = zip(*asked.values(), strict=True)
        k = self.num_documents if reranker is None else self.reranker.candidates
        found = self._search(queries, contexts_asked, k)
        if reranker is not None:
            found = self.reranker(reranker, found, queries, contexts_asked)
        replies = dict(zip(asked, found, strict=True))

        def documents(row, of_row):
            reply = replies[name(row, of_row[0])]
            if len(set(of_row)) == 1:
                return reply
            mixed = [of_mode[i] for i, mode in enumerate(of_row) if i < len(of_mode := replies[name(row, mode)])]
            return mixed or reply  # the reply may be `Failed`

        return [documents(row, of_row) for row, of_row in enumerate(modes.tolist())]

    def _search(self, queries, contexts, k: int):
        """Up to k documents for each query, from the engine or from the action's `run`."""
        found = [None] * len(queries)
        for action in self.actions:
            rows = [row for row, context in enumerate(contexts) if context.action == action.name]
            if rows:
                search = functools.partial(action.run, self.engine) if action.run else self.engine.search
                results = search([queries[row] for row in rows], [contexts[row] for row in rows], k=k)
                for row, documents in zip(rows, results, strict=True):
                    found[row] = documents
        return found


class SimulatorSearch:
    """Searches by a simulator with the policy's tokenizer, on a mesh of its own or on the policy's devices."""

    def __init__(self, simulator: Simulator, mesh, schedule, *, num_shown: int, prefill_batch: int | None = None,
                 in_threads: bool = True):
        """Compiles nothing yet.

        Args:
          mesh: None, or the mesh over which requests are sharded.
          schedule, prefill_batch: of the rollout.
          num_shown: documents that a row is shown of those that are written.
          in_threads: whether the simulator's devices are its own.
        """
        self.simulator, self.mesh, self.schedule, self.in_threads = simulator, mesh, schedule, in_threads
        self.num_shown, self.slots, self._params, self._tables = num_shown, 0, None, None
        # Programs of several devices must begin on all of them in the same order.
        self._lock = threading.Lock()

        def write(params, tables, requests, key, reranker):
            params = decoding_params(params, simulator.config)
            writing = simulator.idle(params, *requests.noisy.shape)
            writing = simulator.take(params, writing, requests, jax.random.wrap_key_data(key), prefill_batch=prefill_batch)
            writing = simulator.proceed(params, tables, writing)
            chosen = reranker is not None or simulator.num_documents > num_shown
            return simulator.replies(writing, chooser(reranker, num_shown) if chosen else None), writing.steps

        self._write = jax.jit(over_rows(write, mesh, rows=("requests",)))

    def begin(self, questions, key, size: int, reranker=None):
        """As `TextSearch.begin`."""
        if self._params is None:
            self._place()
        shards = row_shards(self.mesh)
        self.slots = self.schedule.num_slots(-(-size // shards))
        encoded = *self.simulator.encode_questions(questions), question_keys(questions)
        # As plain numbers: the key may be on other devices than the simulator.
        key = np.asarray(jax.random.key_data(jax.random.fold_in(key, 1)))
        return functools.partial(self._find, questions, encoded, key, reranker), self.slots * shards

    def _place(self):
        simulator, mesh = self.simulator, self.mesh
        if mesh is None:
            self._params, self._tables = simulator.params, simulator.tables
        elif mesh.size == 1:
            self._params, self._tables = jax.device_put((simulator.params, simulator.tables), mesh.devices.item())
        else:
            self._params = for_decoding(simulator.params, simulator.config, mesh)
            self._tables = reshard(simulator.tables, replicated(mesh))

    def _find(self, questions, encoded, key, reranker, asked: Asked) -> SearchResults:
        question, answers, question_key = encoded
        tokens, lengths = asked.query
        names = [(questions[q].identity, tokens[i, :lengths[i]].tobytes(), asked.noisy[i].tobytes())
                 for i, q in enumerate(asked.question)]
        shards = row_shards(self.mesh)
        # Neighbours go to different shards.
        free = iter(np.arange(shards * self.slots).reshape(shards, self.slots).T.ravel().tolist())
        slot, of_slot, active = {}, np.zeros(shards * self.slots, int), np.zeros(shards * self.slots, bool)
        for i, name in enumerate(names):
            if name not in slot:
                slot[name] = next(free)
                of_slot[slot[name]], active[slot[name]] = i, True
        question, answers, question_key = jax.tree.map(lambda x: x[asked.question[of_slot]],
                                                       (question, answers, question_key))
        requests = Requests(question=question, answers=answers, query=(tokens[of_slot], lengths[of_slot]),
                            noisy=asked.noisy[of_slot], question_key=question_key, active=active)
        with self._lock:
            replies, steps = jax.device_get(self._write(self._params, self._tables, requests, key, reranker))
        at = np.array([slot[name] for name in names])
        return SearchResults(jax.tree.map(lambda x: x[at], replies), per_document(asked.noisy, (len(at), self.num_shown)),
                     int(steps.sum()))
