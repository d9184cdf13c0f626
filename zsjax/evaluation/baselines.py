"""What learning to search is to be compared with, in one harness: the same questions, engine, budgets and scores.

    direct            the answer alone, by prompt
    chain_of_thought  thoughts and the answer, by prompt, without search
    no_search         the policy's own prompt and documents without content (R1 without search, if it was trained so)
    rag               one search with the question's own text; the documents stand in the prompt
    interleaved       a sentence of reasoning, a search with it, and so on (IRCoT, arXiv 2212.10509)
    search_agent      search by prompt alone (in the manner of Search-o1, arXiv 2501.05366)
    best_of_n         n episodes of the policy, the answer that most of them give (self-consistency, arXiv 2203.11171)
    tree_search       n episodes by Monte Carlo tree search over turns, and the same vote
    trajectory_sft    the base, fine-tuned on its own correct episodes with the real engine (one round of STaR, arXiv
                      2203.14465; the supervised kind of baseline)

A baseline is a function (Setting) -> records as `evaluate.play` gives, one a question. Prompts are named templates of
`zsjax.rollout.policy_prompt` and are our own wording, so figures are comparable with each other rather than with papers.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from zsjax import rewards, supervised, types
from zsjax.config.fields import Config
from zsjax.evaluate import SCORES, data_set_of, failed_searches, play, play_samples, reach, scored_records
from zsjax.models.placement import for_decoding
from zsjax.rl import roles
from zsjax.rollout import make_rollout
from zsjax.rollout.documents import encode_inert
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.sampling import ragged
from zsjax.search import Empty, Failed, SearchContext
from zsjax.search.simulator.prompt import format_document
from zsjax.tuning.dataset import make_batches
from zsjax.types import Question

PROMPT_TOKENS = 256  # that the prompt of a baseline may be longer than the policy's own
EXPLORATION = 1.0  # of tree search: weight of the bonus for what was seldom tried (UCT)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a baseline is played with.

    Attributes:
      config: the run's.
      model, params: DecoderConfig and parameters of the policy.
      tokenizer: its tokenizer.
      engine: the evaluation's engine.
      questions: all of them are answered.
      key: a jax key.
      meter: (rollout, engine) -> the rollout, counted (`costs.Meter`).
      mesh: that questions are spread over, see `make_rollout`.
      train_questions, train_engine, base_params, writer, directory: of `trajectory_sft` only.
    """

    config: Config
    model: Any
    params: Any
    tokenizer: Any
    engine: Any
    questions: Sequence[Question]
    key: Any
    meter: Callable = lambda rollout, engine: rollout
    mesh: Any = None
    train_questions: Callable[[], Sequence[Question]] = tuple
    train_engine: Callable[[], Any] = lambda: None
    base_params: Callable[[], Any] = lambda: None
    writer: Any = None
    directory: Any = None

    def rollout(self, engine=None, **changes):
        """A rollout of this policy; changes to the config are given as room__field=value."""
        config = self.config
        for name, value in changes.items():
            room, field = name.split("__")
            config = dataclasses.replace(config, **{room: dataclasses.replace(getattr(config, room), **{field: value})})
        engine = engine or self.engine
        return self.meter(make_rollout(self.model, engine, self.tokenizer, config, self.mesh), engine)

    def play(self, rollout, questions=None, params=None) -> list[dict]:
        records, _ = play(rollout, self.params if params is None else params, questions or self.questions, key=self.key,
                          batch_rows=self.config.evaluate.batch_rows)
        return records


def direct(s: Setting) -> list[dict]:
    return s.play(s.rollout(Empty(), prompts__policy="direct", rollout__max_turns=1, **_room(s)))


def chain_of_thought(s: Setting) -> list[dict]:
    return s.play(s.rollout(Empty(), prompts__policy="chain_of_thought", rollout__max_turns=1, **_room(s)))


def _room(s: Setting, tokens: int = 0) -> dict:
    """Budgets for the longer prompt of a baseline, and so many tokens in it beside."""
    more = PROMPT_TOKENS + tokens
    return {"rollout__max_prompt_tokens": s.config.rollout.max_prompt_tokens + more,
            "rollout__max_tokens": s.config.rollout.max_tokens + more}


def no_search(s: Setting) -> list[dict]:
    return s.play(s.rollout(Empty()))


def search_agent(s: Setting) -> list[dict]:
    return s.play(s.rollout(prompts__policy="search_agent", **_room(s)))


def rag(s: Setting) -> list[dict]:
    contexts = [SearchContext(question, call=("rag", row)) for row, question in enumerate(s.questions)]
    found = s.engine.search([question.question for question in s.questions], contexts, k=s.config.search.num_documents)
    asked = [dataclasses.replace(question, question=f"{_lines(s, documents)}\nQuestion: {question.question}")
             for question, documents in zip(s.questions, found, strict=True)]
    rollout = s.rollout(Empty(), prompts__policy="rag", rollout__max_turns=1,
                        **_room(s, s.config.search.num_documents * s.config.search.max_document_tokens))
    records = s.play(rollout, asked)
    # The documents stand in the prompt.
    reached = lambda question, documents: reach({"segments": [{"role": "document", "text": _lines(s, documents)}],
                                                 "golden_answers": question.golden_answers})
    return [record | {"question": question.question, "queries": [question.question], "num_searches": 1,
                      "search_status": [_search_status(documents, s.config.search.num_documents)],
                      "reach": reached(question, documents)}
            for record, question, documents in zip(records, s.questions, found, strict=True)]


def _search_status(documents, k):
    status = (types.SEARCH_FAILED if isinstance(documents, Failed) else types.SEARCH_OK if len(documents) >= k
              else types.SEARCH_SHORT if documents else types.SEARCH_EMPTY)
    return types.SEARCH_STATUS_NAMES[status]


def _lines(s: Setting, documents) -> str:
    """Documents as the policy sees them: a line each, inert, cut to size."""
    cut = [encode_inert(format_document(s.config.search.document_format, i + 1, document), s.tokenizer)
           [:s.config.search.max_document_tokens] for i, document in enumerate(documents)]
    return "".join(s.tokenizer.decode(ids).rstrip("\n") + "\n" for ids in cut)


_INTERLEAVED = """\
{documents}
Answer the question with the help of the documents above. Reason one short sentence at a time, a line each, and end with a \
line "So the answer is: answer."
Question: {question}
Reasoning:
{thoughts}"""
_SO = "So the answer is:"


def interleaved(s: Setting) -> list[dict]:
    """Retrieval with the question, then one sentence and one more retrieval with it, until an answer or the last turn."""
    k, max_turns = s.config.search.num_documents, s.config.rollout.max_turns
    thoughts, answers = [""] * len(s.questions), [None] * len(s.questions)
    documents, queries = [[] for _ in s.questions], [[q.question] for q in s.questions]
    tokens, failures = np.zeros(len(s.questions), int), [[] for _ in s.questions]
    for turn in range(max_turns + 1):
        active = [row for row, answer in enumerate(answers) if answer is None]
        if not active:
            break
        if turn < max_turns:  # with the question at first, with the last sentence then
            contexts = [SearchContext(s.questions[row], call=("interleaved", row, turn)) for row in active]
            found = s.engine.search([queries[row][-1] for row in active], contexts, k=k)
            for row, results in zip(active, found, strict=True):
                failures[row].append(_search_status(results, k))
                if not isinstance(results, Failed):
                    documents[row] += [d for d in results if d not in documents[row]][:k]
        last = turn == max_turns
        prompts = [_INTERLEAVED.format(documents=_lines(s, documents[row]), question=s.questions[row].question,
                                       thoughts=thoughts[row] + (_SO if last else "")) for row in active]
        for row, (text, count) in zip(active, _continue(s, prompts), strict=True):
            sentence = text.strip().partition("\n")[0].strip()
            tokens[row] += count
            answer = sentence if last else sentence.partition(_SO)[2] if _SO in sentence else None
            if answer is None:
                thoughts[row] += sentence + "\n"
                if turn + 1 < max_turns:
                    queries[row].append(sentence or s.questions[row].question)
            else:
                answers[row] = answer.strip().rstrip(".").strip()
                thoughts[row] += (_SO + " " if last else "") + sentence
    return [{"id": q.id, **({"key": q.key} if q.key != q.id else {}), "question": q.question, "golden_answers": list(q.golden_answers), "answer": answers[row],
             "status": "answered" if answers[row] else "ended_without_answer", "queries": queries[row],
             "search_status": failures[row], "noisy": [], "num_searches": len(failures[row]), "tokens": int(tokens[row]),
             **{name: score(answers[row], q.golden_answers) for name, score in SCORES.items()},
             **data_set_of(q), "segments": [{"role": "document", "text": _lines(s, documents[row])},
                          {"role": "policy", "text": thoughts[row]}]}
            for row, q in enumerate(s.questions)]


def _continue(s: Setting, prompts: Sequence[str]) -> list[tuple[str, int]]:
    """(greedy continuation, its tokens) of texts, which keep their ends where they are too long."""
    from zsjax.sampling import generate

    size, rows = s.config.rollout.max_tokens, s.config.evaluate.batch_rows
    bos = list(s.tokenizer.bos_ids)
    ids = [bos + s.tokenizer.encode(s.tokenizer.plain(prompt))[len(bos) - size:] for prompt in prompts]
    out, params = [], for_decoding(s.params, s.model, s.mesh)
    for first in range(0, len(ids), rows):
        batch = ids[first:first + rows]
        tokens, lengths = ragged.pad(ragged.fill(batch, rows), size)
        reply = jax.device_get(generate(params, s.model, tokens, lengths, key=s.key, temperature=0.0,
                                        max_new_tokens=s.config.rollout.max_turn_tokens, stop_ids=s.tokenizer.eos_ids))
        out += [(s.tokenizer.decode(reply.tokens[row, :reply.lengths[row]].tolist()), int(reply.lengths[row]))
                for row in range(len(batch))]
    return out


def vote(records: Sequence[dict]) -> dict:
    """The first record with the answer that most of a question's records give (normalised); no answer counts for nothing.
    Searches, failed ones too, and tokens are those of all of them."""
    names = [rewards.normalize_answer(record["answer"] or "") for record in records]
    votes = collections.Counter(name for name in names if name)
    chosen = records[names.index(votes.most_common(1)[0][0])] if votes else records[0]
    return chosen | {"num_searches": sum(record["num_searches"] for record in records),
                     "failed_searches": sum(map(failed_searches, records)),
                     "tokens": sum(record["tokens"] for record in records), "episodes": len(records)}


def best_of_n(s: Setting) -> list[dict]:
    n, Q = s.config.evaluate.baseline_samples, len(s.questions)
    records = play_samples(s.rollout(), s.params, s.questions, key=s.key, samples=n,
                           batch_rows=s.config.evaluate.batch_rows, temperature=s.config.rollout.temperature)
    return [vote(records[row::Q]) for row in range(Q)]


@dataclasses.dataclass
class Node:
    """A place in the tree: an episode up to where the policy speaks next.

    Attributes:
      tokens, turns: the prefix, as `rollout` takes it.
      children: by the prefix's tokens.
      passed: numbers of the episodes that went through here.
    """

    tokens: tuple[int, ...]
    turns: int
    children: dict = dataclasses.field(default_factory=dict)
    passed: list[int] = dataclasses.field(default_factory=list)


def tree_search(s: Setting) -> list[dict]:
    """Monte Carlo tree search over turns, for all questions in step: select by UCT, play to the end from there, back up.

    No gold answer is known at inference, so an episode's value is the share of the question's episodes that gave its
    answer, looked up anew at every selection. The children of a node are what its episodes did next; playing on from the
    node itself, which opens new ones, competes with them as one more arm.
    """
    template = PolicyTemplate.load(s.config.prompts.policy)
    rollout, n, rows = s.rollout(), s.config.evaluate.baseline_samples, s.config.evaluate.batch_rows
    roots = [Node(tuple(template.encode(s.tokenizer, q.question, chat=s.config.prompts.chat)), 0) for q in s.questions]
    played: list[list[dict]] = [[] for _ in s.questions]
    for iteration in range(n):
        paths = [select(root, values(records)) for root, records in zip(roots, played, strict=True)]
        for first in range(0, len(s.questions), rows):
            group = ragged.fill(range(len(s.questions))[first:first + rows], rows)
            questions, leaves = [s.questions[i] for i in group], [paths[i][-1] for i in group]
            episodes = jax.device_get(rollout(
                s.params, questions, key=jax.random.fold_in(s.key, iteration), group_ids=np.arange(first, first + rows),
                prefixes=[(leaf.tokens, leaf.turns) for leaf in leaves]))
            found = scored_records(episodes, questions, s.tokenizer)
            for row, i in enumerate(group[:len(s.questions) - first]):
                grow(paths[i], episodes, row, len(played[i]))
                played[i].append(found[row])
    return [vote(records) for records in played]


def values(records: Sequence[dict]) -> list[float]:
    """An episode's value: the share of all episodes that gave its answer; 0 without an answer."""
    names = [rewards.normalize_answer(record["answer"] or "") for record in records]
    votes = collections.Counter(names)
    return [votes[name] / len(names) if name else 0.0 for name in names]


def select(root: Node, value: Sequence[float]) -> list[Node]:
    """The path to play on from, by UCT (Kocsis and Szepesvari 2006)."""
    path = [root]
    while path[-1].children:
        node = path[-1]
        through_children = {number for child in node.children.values() for number in child.passed}
        arms = [(node, [number for number in node.passed if number not in through_children])]
        arms += [(child, child.passed) for child in node.children.values()]

        def bound(passed):
            mean = sum(value[number] for number in passed) / max(len(passed), 1)
            return mean + EXPLORATION * math.sqrt(math.log(len(node.passed) + 1) / (len(passed) + 1))

        best = max(arms, key=lambda arm: bound(arm[1]))[0]
        if best is node:
            break
        path.append(best)
    return path


def grow(path: Sequence[Node], episodes, row: int, number: int):
    """Enters episode `number`, which was played on from path[-1], and the node behind its first new search."""
    leaf = path[-1]
    for node in path:
        node.passed.append(number)
    spans = np.asarray(episodes.documents_span[row])
    ends = [(int(stop), turn) for turn, (_, stop) in enumerate(spans) if stop > len(leaf.tokens)]
    if not ends or int(episodes.roles[row][ends[0][0]]) == types.PAD:
        return
    stop, turn = ends[0]
    row_roles = np.asarray(episodes.roles[row])
    while stop < len(row_roles) and row_roles[stop] == types.TEMPLATE:  # the closing tag
        stop += 1
    tokens = tuple(int(t) for t in episodes.tokens[row][:stop])
    child = leaf.children.setdefault(tokens, Node(tokens, turn + 1))
    child.passed.append(number)


def trajectory_sft(s: Setting) -> list[dict]:
    """Fine-tunes the base on its own episodes whose answer was right, loss on what the policy said, and plays greedily."""
    config, questions = s.config, s.train_questions()
    rollout, rows, params = s.rollout(s.train_engine()), config.evaluate.batch_rows, s.base_params()
    kept_tokens, kept_weights, wanted = [], [], max(config.collect.episodes, rows)
    for first in range(0, wanted, rows):
        ids = np.arange(first, first + rows)
        batch = [questions[i % len(questions)] for i in ids]
        episodes = jax.device_get(rollout(params, batch, key=jax.random.fold_in(s.key, 1), group_ids=ids))
        right = [row for row, record in enumerate(scored_records(episodes, batch, s.tokenizer)) if record["em"] == 1]
        kept_tokens.append(np.asarray(episodes.tokens)[right])
        kept_weights.append(np.asarray(roles.loss_mask(np.asarray(episodes.roles)[right])).astype(np.float32))
    tokens, weights = np.concatenate(kept_tokens), np.concatenate(kept_weights)
    s.writer.note(f"trajectory_sft: {len(tokens)} of {-(-wanted // rows) * rows} episodes were right")
    if len(tokens):
        batches = make_batches(tokens, weights, batch_rows=config.trajectory_sft.batch_rows, seed=config.seed)
        params = supervised.train(config.trajectory_sft, s.model, params, batches, writer=s.writer,
                                  stage="trajectory_sft", directory=s.directory, mesh=s.mesh)
    return s.play(s.rollout(), params=params)


METHODS = {method.__name__: method for method in (direct, chain_of_thought, no_search, rag, interleaved, search_agent,
                                                  best_of_n, tree_search, trajectory_sft)}
