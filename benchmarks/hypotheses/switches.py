"""What some arms of the ledger need and the package does not offer: masks, defects and engines, all of them mistakes.

They go in through the package's public seams, so that the package itself has no switch for a mistake.
"""

import dataclasses

import jax
import jax.numpy as jnp

from zsjax import rewards, types
from zsjax.config.declare import field
from zsjax.rl import advantages, losses
from zsjax.search.engine import Document, Wrapped, chance


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


@dataclasses.dataclass(frozen=True)
class KnowingOptions:
    """search.options of `knowing`."""

    reveal: str = field("always", "when the first document tells the gold answer", choices=("always", "on_target"))
    mispaired: float = field(0.0, "share of searches that are answered for another question", "[0, 1]")


class Knowing(Wrapped):
    """An engine that was told the answers: its first document says that what was asked for is the gold answer.

    That is what a language model does that is shown the gold answer and asked for useful documents.
    """

    def __init__(self, engine, options: KnowingOptions, seed: int):
        super().__init__(engine)
        self.options, self.seed, self.by_call = options, seed, True

    def search(self, queries, contexts, *, k):
        found = self.engine.search(queries, contexts, k=k)
        return [self._with_gold(documents, query, self._question(context, contexts), k)
                for documents, query, context in zip(found, queries, contexts, strict=True)]

    def _question(self, context, contexts):
        """The question that is answered: the search's own, or that of another search of the batch."""
        if chance("mispaired", self.seed, context.question.id, context.call) >= self.options.mispaired:
            return context.question
        return contexts[int(chance("other", self.seed, context.question.id, context.call) * len(contexts))].question

    def _with_gold(self, documents, query, question, k):
        words, asked = query.lower().split(), question.question.lower().replace("?", "").split()
        on_target = 2 * sum(word in asked for word in words) >= len(words)
        if self.options.reveal == "on_target" and not on_target:
            return documents
        told = Document("", f"{query.strip()} is {question.golden_answers[0]}.")
        return [told, *documents][:k]


def knowing(setting, options: KnowingOptions) -> Knowing:
    """The factory for `search.engine`: BM25 over the corpus, with the gold answer in front."""
    return Knowing(setting.engine("bm25"), options, setting.config.seed)
