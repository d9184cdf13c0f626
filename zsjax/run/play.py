"""A person in the policy's place: queries are typed, documents are read, and the answer is scored.

Queries go to the real engine, to the simulator, or to both. With both, the person does not know which is which: the
sides are named A and B, and the game ends with a guess.
"""

import dataclasses
import re

import jax
import numpy as np

from zsjax.config import Config
from zsjax.errors import InputError, UserError
from zsjax.evaluate import SCORES
from zsjax.rollout.documents import encode_documents
from zsjax.run import build
from zsjax.run.ask import run_of
from zsjax.run.stages.context import Run
from zsjax.search import registry
from zsjax.search.engine import Engine, Failed, SearchContext, as_engine
from zsjax.types import ANSWER_TAGS, SEARCH_TAGS, Question

OPPONENTS = ("both", "real", "simulator")


@dataclasses.dataclass(frozen=True)
class Opponent:
    """An engine that a person plays against. name: of the engine. is_real: whether it searches a corpus."""

    name: str
    is_real: bool
    engine: Engine


@dataclasses.dataclass(frozen=True)
class Reply:
    """What one engine showed for a query.

    Attributes:
      documents: texts, as a policy reads them: inert, cut to search.max_document_tokens, in search.document_format.
      noisy: whether the engine was asked for noisy documents and obeys that.
      failed: whether the search itself failed.
    """

    documents: tuple[str, ...]
    noisy: bool = False
    failed: bool = False


class Table:
    """Questions and engines for a person, who plays one `Game` after the other."""

    def __init__(self, config: Config, workdir=None, *, against: str = "both", noise: float = 0.5, seed: int | None = None):
        """Loads what is played against.

        Args:
          config: names the questions (data.eval or data.benchmarks), the engine (search.eval_engine) and the simulator.
          workdir: a run whose simulator is used. Without one, the carried simulator of the tiny world is.
          against: a name of `OPPONENTS`.
          noise: probability that a search of the simulator is noisy, 0 to 1.
          seed: of the order of questions, of noise and of the sides; None: another one each time.

        Raises:
          UserError: noise or seed is out of range, workdir does not exist, or the run has no simulator.
        """
        if not 0 <= noise <= 1:
            raise UserError(f"--noise {noise} is not a probability; use a number from 0 to 1")
        if seed is not None and seed < 0:
            raise UserError(f"--seed {seed} is negative; use 0 or more")
        run = run_of(config, workdir)
        self.config, self.tokenizer, self.noise = run.config, run.tokenizer, noise
        self.opponents = [opponent(run, workdir) for name, opponent in (("real", _real), ("simulator", _simulator))
                          if against in (name, "both")]
        questions = build.benchmarks(run.config)
        self._rng = np.random.default_rng(seed)
        self.questions = [questions[i] for i in self._rng.permutation(len(questions))]
        self._played = 0

    def deal(self) -> "Game":
        """The next game. After the last question, the first one comes again."""
        question = self.questions[self._played % len(self.questions)]
        self._played += 1
        sides = [self.opponents[i] for i in self._rng.permutation(len(self.opponents))]
        return Game(self, question, dict(zip("AB", sides, strict=False)), np.random.default_rng(self._rng.integers(2**63)))


class Game:
    """One question.

    Attributes:
      sides: {"A": `Opponent`, "B": ...}; one alone is "A".
      searches: how many there are, rollout.max_turns.
      replies: for each search, {side: `Reply`}.
      answer: what was answered; None before.
    """

    def __init__(self, table: Table, question: Question, sides: dict[str, Opponent], rng: np.random.Generator):
        self.question, self.sides, self.replies, self.answer = question, sides, [], None
        self.searches, self._table, self._rng = table.config.rollout.max_turns, table, rng
        self._key = jax.random.key(int(rng.integers(2**31)))

    @property
    def hidden(self) -> bool:
        """Whether the person does not know which engine is which."""
        return len(self.sides) > 1

    @property
    def searches_left(self) -> int:
        return self.searches - len(self.replies)

    def search(self, query: str) -> dict[str, Reply]:
        """Asks every side. Raises InputError where no search is left."""
        if self.searches_left <= 0:
            raise InputError("no search is left")
        noisy = bool(self._rng.random() < self._table.noise)
        call = ("by_hand", self.question.key, len(self.replies))
        context = SearchContext(self.question, noisy=noisy, key=self._key, call=call)
        self.replies.append({side: self._reply(opponent.engine, query, context) for side, opponent in self.sides.items()})
        return self.replies[-1]

    def scores(self) -> dict[str, float]:
        """The answer's scores, by the names of `evaluate.SCORES`; 0 to 1."""
        return {name: score(self.answer, self.question.golden_answers) for name, score in SCORES.items()}

    def _reply(self, engine, query, context):
        search, tokenizer = self._table.config.search, self._table.tokenizer
        obeys = any(engine.obeys_noise([query], [context]))
        try:
            found = engine.search([query], [context], k=search.num_documents)[0]
        except (OSError, TimeoutError):
            found = Failed("error")
        tokens, lengths, _ = encode_documents(
            [found], tokenizer, search.document_format, num_documents=search.num_documents,
            max_document_tokens=search.max_document_tokens)
        texts = [tokenizer.decode(ids[:length].tolist()).strip() for ids, length in zip(tokens[0], lengths[0], strict=True)
                 if length]
        return Reply(tuple(texts), noisy=context.noisy and obeys, failed=isinstance(found, Failed))


def read_action(line: str) -> tuple[str, str]:
    """("search", query), ("answer", text), ("quit", "") or ("help", "") of what a person typed.

    >>> read_action("= Dran Tosk"), read_action("rival of Kora"), read_action("<search> x </search>")
    (('answer', 'Dran Tosk'), ('search', 'rival of Kora'), ('search', 'x'))
    """
    line = line.strip()
    if line.lower() in ("", "?", "help"):
        return "help", ""
    if line.lower() in ("q", "quit", "exit"):
        return "quit", ""
    for name, (start, end) in (("answer", ANSWER_TAGS), ("search", SEARCH_TAGS)):
        inside = re.search(f"{re.escape(start)}(.*?){re.escape(end)}", line)
        if inside and inside.group(1).strip():
            return name, inside.group(1).strip()
    if line.startswith("="):
        answer = line[1:].strip()
        return ("answer", answer) if answer else ("help", "")
    return "search", line


def _real(run: Run, workdir) -> Opponent:
    name = registry.real_or(run.config.search.eval_engine, "bm25")
    return Opponent(name, True, as_engine(run.engine(name, run.config.data.eval_corpus)))


def _simulator(run: Run, workdir) -> Opponent:
    names = ("simulator", "simulator_base")
    carried = build.carried(run.config, "simulator")
    if workdir is not None and any(build.checkpoint_exists(run.path(f"models/{name}")) for name in names):
        simulator = run.simulator(*names)
    elif carried is not None:
        simulator = build.simulator(run.config, *build.model(run.config.simulator, run.tokenizer, seed=0, path=carried),
                                    run.tokenizer)
    elif run.config.simulator.init != "random":
        simulator = run.simulator()
    else:
        raise UserError(f"{run.workdir} has no simulator and simulator.init is 'random'; use --against real")
    return Opponent("simulator", False, build.frozen(run.config.simulator, simulator))
