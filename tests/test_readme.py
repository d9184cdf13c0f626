"""The README's own loss runs as it stands there."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np

from zsjax.rl import losses

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def blocks(heading):
    """The python blocks of a section, as text."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def run_text(text):
    names = {}
    exec(compile(text, "README.md", "exec"), names)
    return names


class Batch:
    """What the blocks read of a TokenBatch."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.old_logprobs = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
        self.advantages = jnp.asarray(rng.normal(size=(3, 1)), jnp.float32)
        self.rewards = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
        self.group_id = jnp.array([4, 4, 9])


def test_the_custom_loss_is_gspo_in_fifteen_lines():
    text = blocks("Your own loss")[0]
    assert len(text.strip().splitlines()) <= 15
    batch, mask = Batch(), np.arange(5) < np.array([[3], [5], [1]])
    new = batch.old_logprobs + 0.1
    options = dict(loss_mask=mask, clip_low=0.2, clip_high=0.05, reduction="sequence_mean")
    loss_sum, weight, info = run_text(text)["sequence_ratio"](batch, new, **options)
    want, want_weight, _ = losses.gspo(new, batch.old_logprobs, batch.advantages, **options)
    np.testing.assert_allclose([loss_sum, weight], [want, want_weight], rtol=1e-5)
    assert all(len(pair) == 2 for pair in info.values())


def test_the_custom_advantage():
    found = run_text(blocks("Your own loss")[1])["best_of_group"]
    got = found(Batch(), loss_mask=np.ones((3, 5), bool))
    scores = np.asarray(Batch().rewards).sum(axis=1)
    assert got.shape == (3,) and float(got[0]) == float(scores[0] == scores[:2].max()) and float(got[2]) == 1
