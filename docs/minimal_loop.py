"""ZeroSearch in one file: a small policy learns to search by reinforcement, and a second model writes what it finds.

    python docs/minimal_loop.py

Everything is here but the parts that have no state: decoders, keyed sampling, the tag automaton, losses, advantages,
the schedule, and the tiny world. There is no config, no checkpoint and no compiled rollout; a real run has them
(`zsjax/train.py`). The policy starts as the carried base, which reads well and searches badly; the simulator is the
carried one, tuned on other questions. Evaluation is with BM25, on worlds whose names were never seen in training.

Shapes: B episodes, T = ROW tokens, right-padded. Every per-token array is [B, T] and describes its own token.
"""

import argparse
import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zsjax import models, rewards, schedules
from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.rl import advantages, losses, roles
from zsjax.rollout.documents import encode_inert
from zsjax.sampling import TagAutomaton, generate
from zsjax.search import BM25
from zsjax.tiny_world import world
from zsjax.types import ANSWER_TAGS, DOCUMENT, POLICY, PROMPT, SEARCH_TAGS, TEMPLATE

ROW = 256  # tokens of an episode at most: prompt, policy, documents
TURN = 40  # tokens of one generation at most
MAX_SEARCHES = 3  # after these, one last generation may only answer
NUM_DOCUMENTS = 3
DOCUMENT_TOKENS = 12

tokenizer = load_tokenizer(asset_path("asset:tiny_world/tokenizer"))
tags = TagAutomaton.from_tokenizer(tokenizer, (*SEARCH_TAGS, *ANSWER_TAGS))
CLOSE_SEARCH, CLOSE_ANSWER = 2, 4  # events of the automaton: i + 1 for tags[i]


@dataclasses.dataclass
class Episode:
    """One episode while it grows. A token's role and log-prob are written when the token is written."""

    question: world.Question
    tokens: list[int] = dataclasses.field(default_factory=list)
    roles: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    searches: int = 0
    answer: str | None = None
    ended: bool = False

    def write(self, tokens, role, logprobs=None):
        tokens = list(tokens)[:ROW - len(self.tokens)]  # a full row ends the episode
        self.tokens += tokens
        self.roles += [role] * len(tokens)
        self.logprobs += [0.0] * len(tokens) if logprobs is None else list(logprobs)[:len(tokens)]
        self.ended |= len(self.tokens) + TURN > ROW


def pad(rows, size, dtype=np.int32):
    """[B, size] with zeros behind each row."""
    out = np.zeros((len(rows), size), dtype)
    for row, values in zip(out, rows, strict=True):
        row[:len(values)] = values
    return out


def play(policy, params, questions, search, *, key, temperature=1.0) -> list[Episode]:
    """Plays one episode for each question. Tokens that were sampled are kept as they are, never encoded again.

    search: ([(query, episode, row)]) -> a list of document lines for each.
    """
    episodes = [Episode(question) for question in questions]
    for episode in episodes:
        episode.write(tokenizer.encode(world.POLICY_PROMPT.format(question=episode.question.question)), PROMPT)

    for turn in range(MAX_SEARCHES + 1):
        lengths = np.array([len(episode.tokens) for episode in episodes], np.int32)
        # All rows are continued, ended ones as well, so that there is one compiled program.
        out = generate(params, policy, pad([e.tokens for e in episodes], ROW), lengths, key=key, max_new_tokens=TURN,
                       temperature=temperature, stop_ids=tokenizer.eos_ids)
        events = tags.events(out.tokens, jnp.arange(TURN) < out.lengths[:, None])
        new, counts, logprobs, events = jax.device_get((out.tokens, out.lengths, out.logprobs, events))

        asked = []
        for row, episode in enumerate(episodes):
            if episode.ended:
                continue
            closing = np.flatnonzero(np.isin(events[row], (CLOSE_SEARCH, CLOSE_ANSWER)))
            stop = closing[0] + 1 if len(closing) else counts[row]  # what was sampled behind the tag is dropped
            episode.write(new[row, :stop].tolist(), POLICY, logprobs[row, :stop])
            text = tokenizer.decode(new[row, :stop].tolist())
            event = events[row, closing[0]] if len(closing) else 0
            query = re.search(r"<search>(.+?)</search>", text, re.DOTALL)
            if event == CLOSE_ANSWER:
                episode.answer, episode.ended = rewards.extract_answer(text), True
            elif tokenizer.eos_ids[0] in new[row, :stop] or turn == MAX_SEARCHES:
                episode.ended = True
            elif event == CLOSE_SEARCH and query and not episode.ended:
                asked.append((query.group(1).strip(), episode, row))
            else:
                episode.write(tokenizer.encode(world.HINT), TEMPLATE)

        for (_, episode, _), lines in zip(asked, search(asked), strict=True):
            episode.searches += 1
            episode.write(tokenizer.encode(world.DOCUMENTS_OPEN), TEMPLATE)
            for line in lines:
                episode.write(encode_inert(line, tokenizer)[:DOCUMENT_TOKENS], DOCUMENT)
            episode.write(tokenizer.encode(world.DOCUMENTS_CLOSE), TEMPLATE)
    return episodes


def simulated_search(simulator, params, *, noise, key, rows):
    """The search engine is a language model: told to be useful or noisy, it writes documents for a query."""

    def search(asked):
        if not asked:
            return []
        # Draws are named by the row and its turn, so an episode does not depend on the others of its batch.
        rng = {row: np.random.default_rng([*np.asarray(jax.random.key_data(key)).ravel(), row, episode.searches])
               for _, episode, row in asked}
        prompts = [[0]] * rows
        for query, episode, row in asked:
            mode = "noisy" if rng[row].random() < noise else "useful"
            prompts[row] = tokenizer.encode(world.SIMULATOR_PROMPT.format(
                mode=mode, question=episode.question.question, query=f" {query}",
                answers="; ".join(f" {gold}" for gold in episode.question.golden_answers)))[:128]
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        turn = max(episode.searches for _, episode, _ in asked)
        out = generate(params, simulator, pad(prompts, 128), lengths, key=jax.random.fold_in(key, turn),
                       max_new_tokens=NUM_DOCUMENTS * DOCUMENT_TOKENS, temperature=0.25, stop_ids=tokenizer.eos_ids)
        found = []
        for _, _, row in asked:
            text = tokenizer.decode(np.asarray(out.tokens[row, :out.lengths[row]]).tolist())
            lines = [line for line in text.splitlines() if line.strip()][:NUM_DOCUMENTS]
            found.append([lines[i] for i in rng[row].permutation(len(lines))])
        return found

    return search


def real_search(index):
    """The same interface over a real engine."""

    def search(asked):
        if not asked:
            return []
        found = index.search([query for query, _, _ in asked], [None] * len(asked), k=NUM_DOCUMENTS)
        return [[world.DOCUMENT_LINE.format(text=document.text) for document in documents] for documents in found]

    return search


def make_update(policy, optimizer):
    """One GRPO step: advantages from rewards, the clipped surrogate on the policy's own tokens."""

    def loss(params, tokens, mask, old_logprobs, advantage):
        logits = models.forward(params, policy, tokens, valid=mask["valid"])
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)[..., 0]
        logprobs = jnp.pad(logprobs, ((0, 0), (1, 0)))  # of each token, under what stands before it
        total, weight, info = losses.ppo_clip(logprobs, old_logprobs, advantage[:, None], loss_mask=mask["loss"])
        gap = losses.aggregate(jnp.abs(logprobs - old_logprobs), loss_mask=mask["loss"], reduction="token_mean")
        return total / jnp.maximum(weight, 1), {"clip_fraction": info["clip_fraction"], "sampler_gap": gap}

    @jax.jit
    def update(params, opt_state, tokens, token_roles, old_logprobs, scores, group_id):
        mask = {"loss": roles.loss_mask(token_roles), "valid": roles.attention_mask(token_roles)}
        advantage = advantages.grpo(scores, group_id=group_id)
        (_, info), gradient = jax.value_and_grad(loss, has_aux=True)(params, tokens, mask, old_logprobs, advantage)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        means = {name: total / jnp.maximum(weight, 1) for name, (total, weight) in info.items()}
        return optax.apply_updates(params, updates), opt_state, means

    return update


def score(episodes) -> np.ndarray:
    """float32[B]: the reward is the answer's F1, of the policy's own text."""
    return np.array([rewards.f1_score(e.answer, e.question.golden_answers) for e in episodes], np.float32)


def main(steps: int = 12, questions_per_step: int = 6, group_size: int = 8, end_noise: float = 0.5, seed: int = 0,
         learning_rate: float = 1e-3, show=print) -> dict[str, list[float]]:
    """Trains and evaluates. Returns "reward" and "sampler_gap" of each step, and "unseen": exact match before and after."""
    policy, params = models.load_hf(asset_path("asset:tiny_world/base"), dtype=jnp.float32)
    simulator, simulator_params = models.load_hf(asset_path("asset:tiny_world/simulator"), dtype=jnp.float32)
    train_questions = world.questions(world.worlds_of("tiny_world:train"))
    unseen = world.worlds_of("tiny_world:eval")
    index = BM25.from_documents(world.documents(unseen))

    B = questions_per_step * group_size
    noise = schedules.zero_search(0.0, end_noise, total_steps=steps)
    rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, 3),
                                 optax.linear_schedule(learning_rate, 0.1 * learning_rate, max(1, steps - 3))], [3])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.0))
    opt_state, update, key = optimizer.init(params), make_update(policy, optimizer), jax.random.key(seed)

    def evaluate(params):
        asked = world.questions(unseen)[:B]
        played = play(policy, params, asked, real_search(index), key=key, temperature=0.0)
        return float(np.mean([rewards.exact_match(e.answer, e.question.golden_answers) for e in played]))

    found = {"reward": [], "sampler_gap": [], "unseen": [evaluate(params)]}
    show(f"unseen worlds, BM25: exact match {found['unseen'][0]:.2f}")
    begun = time.perf_counter()
    for step in range(steps):
        # The way of the data: questions -> episodes -> rewards -> advantages -> update.
        rng = np.random.default_rng([seed, step])
        chosen = rng.choice(len(train_questions), questions_per_step, replace=False)
        asked = [train_questions[i] for i in chosen for _ in range(group_size)]
        step_key = jax.random.fold_in(key, step)
        search = simulated_search(simulator, simulator_params, noise=float(noise(step)), rows=B,
                                  key=jax.random.fold_in(step_key, 1))
        played = play(policy, params, asked, search, key=step_key)
        scores = score(played)
        params, opt_state, info = update(
            params, opt_state, pad([e.tokens for e in played], ROW), pad([e.roles for e in played], ROW, np.int8),
            pad([e.logprobs for e in played], ROW, np.float32), scores, np.repeat(np.arange(questions_per_step), group_size))
        found["reward"].append(float(scores.mean()))
        found["sampler_gap"].append(float(info["sampler_gap"]))
        show(f"step {step + 1:3}  reward {scores.mean():.2f}  noise {float(noise(step)):.2f}  searches "
             f"{np.mean([e.searches for e in played]):.2f}  sampler gap {found['sampler_gap'][-1]:.1e}  "
             f"{time.perf_counter() - begun:.0f} s")
    found["unseen"].append(evaluate(params))
    show(f"unseen worlds, BM25: exact match {found['unseen'][1]:.2f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="ZeroSearch in one file, on the tiny world.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.steps, seed=options.seed)
