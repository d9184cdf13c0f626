"""What a base of the tiny world can do without searching: read facts, and answer from the right documents.

The score of whole episodes mixes reading with searching. These two measures leave searching out.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.models import decoder
from zsjax.rewards import exact_match, extract_answer
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.sampling import generate, ragged
from zsjax.search.simulator.prompt import format_document
from zsjax.tiny_world import world
from zsjax.tiny_world.rows import LINE, OBJECT, reading_rows, vocabulary
from zsjax.types import Question

MAX_REPLY_TOKENS = 24  # a thought of 9 words, its tags, and an answer in its tags


def reading_accuracy(model_config, params, tokenizer, num_facts: int, *, rows: int = 64, seed: int = 0,
                     paraphrase: float = 0.0) -> float:
    """Share of facts whose object is copied exactly; training has never used these names.

    Each row tells num_facts facts and then asks each of them once, in another order. A word counts as copied where it
    is the greedy choice behind the right words. paraphrase: as `reading_rows`.
    """
    tokens, _, asked = reading_rows(np.random.default_rng([seed, num_facts]), vocabulary(tokenizer), rows=rows,
                                    max_tokens=2 * num_facts * LINE, facts=num_facts, held_out=True,
                                    paraphrase=paraphrase)
    choice = np.asarray(_greedy(params, tokens, model_config)).reshape(rows, -1, LINE)
    lines = tokens.reshape(rows, -1, LINE)
    before = slice(OBJECT.start - 1, OBJECT.stop - 1)
    right = (choice[:, :, before] == lines[:, :, OBJECT]).all(axis=-1)
    return float(right[asked].mean())


def _greedy_of(params, tokens, model_config):
    return jnp.argmax(decoder.forward(params, model_config, tokens), axis=-1)


_greedy = jax.jit(_greedy_of, static_argnums=2)


def documents_given(model_config, params, tokenizer, engine, questions: Sequence[Question], config) -> list[dict]:
    """EM of greedy answers when every right query was asked.

    For each hop the row gets the question's right query and its documents, in a random order. The model then writes
    its thought. After the last hop it must answer.

    Args:
      engine: a real engine over the questions' corpus.
      questions: with metadata "queries" (the right ones, in order) and "hops".
      config: the run's; search.num_documents, search.document_format, prompts.policy and seed are read.

    Returns:
      A dict for each number of hops: hops, n, em.
    """
    template, rng = PolicyTemplate.load(config.prompts.policy), np.random.default_rng(config.seed)

    def encode(text):
        return list(tokenizer.encode(text))

    rows = [encode(template.render(q.question)) for q in questions]
    said, scores = [world.FIRST_THOUGHT] * len(questions), np.zeros(len(questions))
    hops = np.array([len(q.metadata["queries"]) for q in questions])
    for hop in range(hops.max()):
        active = np.flatnonzero(hops > hop)
        asked = [questions[i].metadata["queries"][hop] for i in active]
        found = engine.search(asked, None, k=config.search.num_documents)
        for i, query, documents in zip(active, asked, found, strict=True):
            rows[i] += encode(f"{said[i]}<search> {query} </search>") + encode(template.information_open)
            for number, j in enumerate(rng.permutation(len(documents))):
                rows[i] += encode(format_document(config.search.document_format, number + 1, documents[j]))
            rows[i] += encode(template.information_close)
        for i, text in zip(active, _continue(model_config, params, tokenizer, [rows[i] for i in active]), strict=True):
            if hops[i] == hop + 1:
                answer = text.partition("</answer>")[0] + "</answer>"
                scores[i] = exact_match(extract_answer(answer) if "<search>" not in answer else None,
                                        questions[i].golden_answers)
            else:
                said[i] = text.partition("</think>")[0] + "</think>"
    return [{"hops": int(h), "n": int((hops == h).sum()), "em": float(scores[hops == h].mean())} for h in np.unique(hops)]


def _continue(model_config, params, tokenizer, rows):
    """Greedy texts behind rows of tokens."""
    tokens, lengths = ragged.pad(rows, -(-max(map(len, rows)) // 32) * 32)
    out = generate(params, model_config, tokens, lengths, key=jax.random.key(0), max_new_tokens=MAX_REPLY_TOKENS,
                   temperature=0.0)
    lengths = np.asarray(out.lengths)
    return [tokenizer.decode(ids[:n].tolist()) for ids, n in zip(np.asarray(out.tokens), lengths, strict=True)]
