"""Baselines for learning to search, in one harness: the same questions, engine, budgets and scores.

    direct            the answer alone, by prompt
    chain_of_thought  thoughts and the answer, by prompt, without search
    no_search         the policy's own prompt and documents without content (R1, if it was trained so)
    rag               one search with the question's own text; the prompt holds the documents
    interleaved       a sentence of reasoning, a search with it, and so on (IRCoT, arXiv 2212.10509)
    search_agent      search by prompt alone (in the manner of Search-o1, arXiv 2501.05366)
    best_of_n         n episodes of the policy; the most frequent answer counts (self-consistency, arXiv 2203.11171)
    tree_search       n episodes by Monte Carlo tree search over turns, and the same vote
    trajectory_sft    the base, fine-tuned on its own correct episodes with the real engine (one round of STaR, arXiv
                      2203.14465; the supervised kind of baseline)

A baseline is a function (Setting) -> records as `evaluate.play` returns, one a question. Prompts are named templates of
`zsjax.rollout.policy_prompt` in our own wording: compare the figures with each other rather than with papers.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from zsjax import supervised, types
from zsjax.config.fields import Config
from zsjax.data.question_metadata import data_set_of
from zsjax.evaluate import SCORES, play_samples, reach, scored_records
from zsjax.evaluation.baseline_setting import Setting, vote
from zsjax.evaluation.tree_search import tree_search
from zsjax.models.placement import for_decoding
from zsjax.rl import roles
from zsjax.rollout.documents import encode_inert
from zsjax.rollout.policy_prompt import WITH_EXAMPLES, PolicyTemplate
from zsjax.sampling import ragged
from zsjax.search import Empty, Failed, SearchContext
from zsjax.search.engine import AskedByLead
from zsjax.search.simulator.prompt import format_document
from zsjax.tuning.dataset import make_batches

PROMPT_TOKENS = 256  # a baseline's prompt may be longer than the policy's own by these


def direct(s: Setting) -> list[dict]:
    return s.play(s.rollout(Empty(), rollout__max_turns=1, **_prompted(s, "direct")))


def chain_of_thought(s: Setting) -> list[dict]:
    return s.play(s.rollout(Empty(), rollout__max_turns=1, **_prompted(s, "chain_of_thought", thinks=1)))


def _prompted(s: Setting, name: str, *, tokens: int = 0, thinks: int = 0) -> dict:
    """Changes of the config: a baseline's prompt, and budgets for it.

    tokens: that are put into the prompt beside the question. thinks: turns that have config.evaluate.baseline_turn_tokens.
    """
    rollout, more = s.config.rollout, PROMPT_TOKENS + tokens
    if s.config.prompts.baseline_examples:
        short, name = name, name + WITH_EXAMPLES
        more += max(_frame(s, name) - _frame(s, short), 0)
    turn = max(rollout.max_turn_tokens, s.config.evaluate.baseline_turn_tokens if thinks else 0)
    return {"prompts__policy": name, "rollout__max_prompt_tokens": rollout.max_prompt_tokens + more,
            "rollout__max_turn_tokens": turn,  # one more turn may only answer
            "rollout__max_tokens": rollout.max_tokens + more + (thinks + 1) * (turn - rollout.max_turn_tokens)}


def _frame(s, name) -> int:
    """Tokens of a prompt without a question."""
    return len(PolicyTemplate.load(name).encode(s.tokenizer, "", chat=s.config.prompts.chat))


def no_search(s: Setting) -> list[dict]:
    return s.play(s.rollout(Empty()))


def search_agent(s: Setting) -> list[dict]:
    return s.play(s.rollout(**_prompted(s, "search_agent", thinks=s.config.rollout.max_turns)))


def rag(s: Setting) -> list[dict]:
    contexts = [SearchContext(question, call=("rag", row)) for row, question in enumerate(s.questions)]
    found = AskedByLead(s.engine).search([question.question for question in s.questions], contexts,
                                         k=s.config.search.num_documents)
    asked = [dataclasses.replace(question, question=f"{_lines(s, documents)}\nQuestion: {question.question}")
             for question, documents in zip(s.questions, found, strict=True)]
    shown = s.config.search.num_documents * s.config.search.max_document_tokens
    rollout = s.rollout(Empty(), rollout__max_turns=1, **_prompted(s, "rag", tokens=shown))
    records = s.play(rollout, asked)
    return [record | {"question": question.question, "queries": [question.question], "num_searches": 1,
                      "search_status": [_search_status(documents, s.config.search.num_documents)],
                      "reach": reach(_lines(s, documents), question.golden_answers)}
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
        if turn < max_turns:  # first with the question, then with the last sentence
            contexts = [SearchContext(s.questions[row], call=("interleaved", row, turn)) for row in active]
            found = AskedByLead(s.engine).search([queries[row][-1] for row in active], contexts, k=k)
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
    return [{"id": q.id, **({"key": q.key} if q.key != q.id else {}), "question": q.question,
             "golden_answers": list(q.golden_answers), "answer": answers[row],
             "status": "answered" if answers[row] else "ended_without_answer", "queries": queries[row],
             "search_status": failures[row], "noisy": [], "num_searches": len(failures[row]), "tokens": int(tokens[row]),
             **{name: score(answers[row], q.golden_answers) for name, score in SCORES.items()},
             **data_set_of(q), "segments": [{"role": "document", "text": _lines(s, documents[row])},
                                            {"role": "policy", "text": thoughts[row]}]}
            for row, q in enumerate(s.questions)]


def _continue(s: Setting, prompts: Sequence[str]) -> list[tuple[str, int]]:
    """(greedy continuation, number of its tokens) of each text; of a text that is too long, the end is kept."""
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


def best_of_n(s: Setting) -> list[dict]:
    n, Q = s.config.evaluate.baseline_samples, len(s.questions)
    records = play_samples(s.rollout(), s.params, s.questions, key=s.key, samples=n,
                           batch_rows=s.config.evaluate.batch_rows, temperature=s.config.rollout.temperature)
    return [vote(records[row::Q]) for row in range(Q)]


def num_episodes(config: Config) -> int:
    """How many episodes `trajectory_sft` plays: whole batches."""
    rows = config.evaluate.batch_rows
    return -(-max(config.collect.episodes, rows) // rows) * rows


def trajectory_sft(s: Setting) -> list[dict]:
    """Fine-tunes the base on its own right episodes, loss on POLICY tokens, and plays greedily."""
    config, questions = s.config, s.train_questions()
    rollout, rows, params = s.rollout(s.train_engine()), config.evaluate.batch_rows, s.base_params()
    placed = rollout.place(params)  # once for all batches
    kept_tokens, kept_weights, played = [], [], num_episodes(config)
    for first in range(0, played, rows):
        ids = np.arange(first, first + rows)
        batch = [questions[i % len(questions)] for i in ids]
        episodes = jax.device_get(rollout(placed, batch, key=jax.random.fold_in(s.key, 1), group_ids=ids))
        right = [row for row, record in enumerate(scored_records(episodes, batch, s.tokenizer)) if record["em"] == 1]
        kept_tokens.append(np.asarray(episodes.tokens)[right])
        kept_weights.append(np.asarray(roles.loss_mask(np.asarray(episodes.roles)[right])).astype(np.float32))
    tokens, weights = np.concatenate(kept_tokens), np.concatenate(kept_weights)
    s.writer.note(f"trajectory_sft: {len(tokens)} of {played} episodes were right")
    if len(tokens):
        batches = make_batches(tokens, weights, batch_rows=config.trajectory_sft.batch_rows, seed=config.seed)
        params = supervised.fit(config.trajectory_sft, s.model, params, batches, writer=s.writer,
                                  stage="trajectory_sft", directory=s.directory, mesh=s.mesh)
    return s.play(s.rollout(), params=params)


METHODS = {method.__name__: method for method in (direct, chain_of_thought, no_search, rag, interleaved, search_agent,
                                                  best_of_n, tree_search, trajectory_sft)}
OWN_PROMPT = ("no_search", "best_of_n", "tree_search")  # methods that play the policy's own prompt, which it was taught
