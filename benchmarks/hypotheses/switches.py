"""What some arms of the ledger need and the package does not offer: masks, defects and engines, all of them mistakes.

They go in through the package's public seams, so that the package itself has no switch for a mistake.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from zsjax import rewards, types
from zsjax.config.declare import field
from zsjax.rl import advantages, losses
from zsjax.search.engine import Document, Wrapped, chance
from zsjax.tiny_world.world import PARAPHRASES, answer_of, query_text


def _response(batch):
    """bool[B, T]: everything behind the prompt, documents included, of rows that count."""
    mask = (batch.roles != types.PAD) & (batch.roles != types.PROMPT)
    return mask & batch.row_valid[:, None]


def loss_on_documents(batch, logprobs, *, loss_mask, clip_low, clip_high, reduction, entropy=None, values=None, **_):
    """GRPO's loss on all tokens behind the prompt: retrieved documents are trained on like the policy's own tokens.

    A step makes one update here, so that the old log-probs are the current ones and no ratio is clipped.
    """
    del loss_mask, entropy, values, clip_low, clip_high
    mask = _response(batch)
    ratio = jnp.exp(jnp.where(mask, logprobs - jax.lax.stop_gradient(logprobs), 0))
    row = jnp.where(batch.roles == types.POLICY, batch.advantages, 0)
    advantage = row[jnp.arange(len(row)), jnp.abs(row).argmax(axis=1)][:, None]
    reduction = reduction if isinstance(reduction, str) else "token_mean"
    total, weight = losses.aggregate(-ratio * advantage, loss_mask=mask, reduction=reduction)
    return total, weight, {}


def gae_over_documents(batch, *, loss_mask):
    """GAE and whitening over every token behind the prompt, as ZeroSearch's trainer has them (lambda 0.95)."""
    del loss_mask
    mask = _response(batch)
    advantage, returns = advantages.gae(batch.rewards, batch.values, loss_mask=mask, gamma=1.0, lam=0.95)
    return advantages.whiten(advantage, loss_mask=mask), returns


def kl_bonus(batch, logprobs, *, loss_mask, entropy):
    """Minus the KL to the reference (k3): ZeroSearch's sign, which rewards drift."""
    del entropy

    def safe(x):
        return jnp.where(loss_mask, x, 0)

    return -losses.kl_penalty(safe(logprobs), safe(batch.ref_logprobs), kind="k3")


EXAMPLE = "Rolo Braheim"  # the training world's most frequent answer stands for the reference's "Beijing"


def f1_with_example(outcome) -> float:
    """F1, where an episode without an answer is scored as if it had given the prompt's example."""
    return rewards.f1_score(EXAMPLE if outcome.answer is None else outcome.answer, outcome.golds)


def half_in_question(query, question) -> bool:
    """Whether half of the query's words stand in the question: the rule of `search.reveal_gold`.

    The first query of every question passes it. A right last query names what the first search has found, and passes
    only where the question asks for the relation in the documents' word.
    """
    words, asked = query.lower().split(), question.question.lower().replace("?", "").split()
    return 2 * sum(word in asked for word in words) >= len(words)


def is_last_query(query, question) -> bool:
    """Whether the query asks for the answer itself: the last right query, in the documents' word or the other one."""
    right = question.metadata["queries"][-1]
    relation, _, entity = right.partition(" of ")
    forms = right, query_text(PARAPHRASES[relation], entity)
    return rewards.normalize_answer(query) in map(rewards.normalize_answer, forms)


REVEALS = {"word_rule": half_in_question, "right_query": is_last_query, "never": lambda query, question: False}


@dataclasses.dataclass(frozen=True)
class KnowingOptions:
    """search.options of `knowing`."""

    reveal: str = field("always", "when the first document tells the gold answer", choices=("always", *REVEALS))
    mispaired: float = field(0.0, "share of searches whose first document tells another question's answer", "[0, 1]")


class Knowing(Wrapped):
    """An engine that was told the answers: its first document says that what was asked for is the gold answer.

    That is what a language model does that is shown the gold answer and asked for useful documents. Whether a search
    is mis-paired, and with whose answer, is a function of (seed, question id, context.call) alone.
    """

    def __init__(self, engine, options: KnowingOptions, answers: Iterable[str], seed: int):
        """Wraps engine. answers: among which a mis-paired search finds that of another question."""
        super().__init__(engine)
        self.options, self.answers, self.seed = options, sorted(set(answers)), seed
        self.by_call = self.by_call or options.mispaired > 0

    def search(self, queries, contexts, *, k):
        found = self.engine.search(queries, contexts, k=k)
        return [self._with_answer(documents, query, context)[:k]
                for documents, query, context in zip(found, queries, contexts, strict=True)]

    def _with_answer(self, documents, query, context):
        question, name = context.question, (self.seed, context.question.id, context.call)
        if chance("mispaired", *name) < self.options.mispaired:
            others = [answer for answer in self.answers if answer not in question.golden_answers]
            answer = others[int(chance("other", *name) * len(others))]
        elif self.options.reveal == "always" or REVEALS[self.options.reveal](query, question):
            answer = question.golden_answers[0]
        else:
            return documents
        return [Document("", f"{query.strip()} is {answer}."), *documents]


def knowing(setting, options: KnowingOptions) -> Knowing:
    """The factory for `search.engine`: BM25 over the corpus, with an answer in front."""
    return Knowing(setting.engine("bm25"), options, map(answer_of, setting.documents()), setting.config.seed)
