"""What a step of reinforcement learning tells about its episodes: means for the metrics, trajectories for people."""

import pathlib
from collections.abc import Sequence

import numpy as np

from zsjax import rewards, types
from zsjax.evaluate import on_path, reach
from zsjax.parallel.files import write_jsonl
from zsjax.rewards.terms import Outcome
from zsjax.rl import roles
from zsjax.rl.selection import groups_with_signal
from zsjax.rollout import transcript
from zsjax.rollout.experience import Experience
from zsjax.types import Metric, TokenBatch

_GAP, _SCORE, _ENDS, _NEWS = "Sampler–trainer gap", "Score in training", "Ends", "News of searches"
METRICS = (
    Metric("em", "answers that equal a gold answer after normalisation", "share of episodes", 0.0, 1.0,
           "follows the reward", chart=_SCORE, curve="exact match"),
    Metric("reward", "mean reward of the step's episodes", healthy="rises, then falls a little with the noise",
           chart=_SCORE, curve="reward", read_by=("adaptive curriculum",)),
    Metric("reward/*", "mean of one reward term, before its weight", "of the term", chart="Terms of the reward"),
    Metric("noisy_share", "shown documents of noisy draws", "share of documents", 0.0, 1.0, "near noise", chart="Noise",
           curve="drawn"),
    Metric("searches", "searches that were run", "per episode", 0.0, healthy="as many as the questions have hops",
           alarm="the policy hardly searches any more", chart="Searches", curve="in training"),
    Metric("on_path", "queries that equal a right query, where the questions know them", "share of searches", 0.0, 1.0,
           "rises with the reward", chart="Queries on path", curve="on path"),
    Metric("reach", "searches whose documents hold a gold answer", "share of searches", 0.0, 1.0, "rises with the reward",
           chart=_NEWS, curve="gold within reach"),
    Metric("repeated_queries", "queries that the episode had made before, in the same words", "share of searches", 0.0, 1.0,
           "near 0", chart=_NEWS, curve="repeated queries"),
    Metric("results_without_news", "searches with documents, all of which the episode had been shown before",
           "share of searches", 0.0, 1.0, "near 0", chart=_NEWS, curve="results without news"),
    Metric("invalid_actions", "generations that were neither a search nor an answer", "per episode", 0.0,
           healthy="falls towards 0"),
    Metric("short_replies", "searches with fewer documents than asked for, none, or a failure", "share of searches", 0.0,
           1.0, "near 0"),
    Metric("groups_with_signal", "groups whose rewards differ; only these move the policy", "share of groups", 0.0, 1.0,
           "0.2 or more while it learns", chart="Groups with a signal", curve="groups"),
    Metric("response_tokens", "tokens that the policy wrote", "tokens per episode", 0.0,
           alarm="the policy writes next to nothing", chart="Length", curve="response"),
    Metric("document_tokens", "tokens of documents that the policy was shown", "tokens per episode", 0.0, chart="Length",
           curve="documents"),
    Metric("length", "all tokens of an episode's row", "tokens per episode", 0.0),
    Metric("repetition", "4-grams that occurred before in the same episode", "share of 4-grams", 0.0, 1.0, "constant",
           alarm="the policy repeats itself", chart="Repetition", curve="repetition"),
    Metric("rounds", "rollouts that the step needed to replace groups without signal", "rollouts", 1.0),
    Metric("share_answered", "episodes that end with an answer", "share of episodes", 0.0, 1.0, "rises towards 1",
           alarm="hardly an episode ends with an answer", chart=_ENDS, curve="answered"),
    Metric("share_out_of_turns", "episodes that used all turns and did not answer after them", "share of episodes", 0.0, 1.0,
           chart=_ENDS, curve="out_of_turns"),
    Metric("share_ended_without_answer", "episodes that ended with EOS and no answer", "share of episodes", 0.0, 1.0,
           chart=_ENDS, curve="ended_without_answer"),
    Metric("share_out_of_tokens", "episodes whose row was full", "share of episodes", 0.0, 1.0, "near 0", chart=_ENDS,
           curve="out_of_tokens"),
    Metric("sampler_gap_mean", "|trainer's - sampler's log-prob| of POLICY tokens, the mean", "nats per token", 0.0,
           healthy="1e-6 in float32, 1e-2 in bfloat16", alarm="sampler and trainer give different log-probs", chart=_GAP,
           curve="mean"),
    Metric("sampler_gap_p99", "its 99 % quantile", "nats per token", 0.0, chart=_GAP, curve="99 %"),
    Metric("sampler_gap_max", "its maximum", "nats per token", 0.0, chart=_GAP, curve="max"),
    Metric("right_logprob", "log-prob of POLICY tokens of episodes with an exact answer, before the update; left out "
           "without such episodes", "nats per token", high=0.0, healthy="does not fall",
           chart="Likelihood of right episodes", curve="log-prob"),
    Metric("positive_ratio_min", "lowest trainer's over sampler's probability of a POLICY token with a positive advantage, "
           "before the update: of the sampler–trainer gap, not of what the update does; left out without such tokens",
           "ratio", 0.0, healthy="near 1", chart="Ratio of positive tokens", curve="lowest, before the update"),
)
SHORT_REPLIES = (types.SEARCH_SHORT, types.SEARCH_EMPTY, types.SEARCH_FAILED)


def token_metrics(batch: TokenBatch, experience: Experience, scored) -> dict[str, float]:
    """Metrics of the batch's tokens, from log-probs and advantages before the update; {} without a scored row.

    batch: numpy, a row for each episode of `experience`; old_logprobs, behavior_logprobs and advantages are read.
    scored: bool[B], the rows that have old_logprobs.
    """
    mask = np.asarray(roles.loss_mask(batch.roles)) & scored[:, None]
    if not mask.any():
        return {}
    old = np.asarray(batch.old_logprobs)
    log_ratio = old - np.asarray(batch.behavior_logprobs)
    gap = np.abs(log_ratio)[mask]
    metrics = {"sampler_gap_mean": float(gap.mean()), "sampler_gap_p99": float(np.quantile(gap, 0.99)),
               "sampler_gap_max": float(gap.max())}
    right = np.array([rewards.exact_match(outcome.answer, outcome.golds) > 0 for outcome in experience.outcomes])
    if (of_right := mask & right[:, None]).any():
        metrics["right_logprob"] = float(old[of_right].mean(dtype=np.float64))
    if (positive := mask & (np.asarray(batch.advantages) > 0)).any():
        metrics["positive_ratio_min"] = float(np.exp(log_ratio[positive].min()))
    return metrics


def episode_metrics(experience: Experience) -> dict[str, float]:
    """Means over the step's episodes."""
    episodes, scores = experience.episodes, experience.scores
    right, searches = np.sum([on_path({"queries": outcome.queries}, question)
                              for outcome, question in zip(experience.outcomes, experience.questions, strict=True)], axis=0)
    status = np.bincount(episodes.status, minlength=len(types.STATUS_NAMES)) / len(scores)
    per_role = [(episodes.roles == role).sum() / len(scores) for role in (types.POLICY, types.DOCUMENT)]
    searched = ~np.isin(episodes.search_status, (types.NOT_SEARCHED, types.INVALID_ACTION))
    written = [np.concatenate([np.zeros(0, np.int32), *transcript.generations(episodes, b)]) for b in range(len(scores))]
    return {
        "reward": float(scores.mean()),
        **{f"reward/{name}": float(values.mean()) for name, values in experience.terms.items()},
        "em": float(np.mean([rewards.exact_match(o.answer, o.golds) for o in experience.outcomes])),
        "searches": float(episodes.num_searches.mean()),
        "on_path": float(right / searches) if searches else 0.0,
        **search_metrics(experience.outcomes),
        "noisy_share": float(episodes.noisy.sum() / max(episodes.noisy.shape[2] * episodes.num_searches.sum(), 1)),
        "invalid_actions": float((episodes.search_status == types.INVALID_ACTION).sum() / len(scores)),
        "short_replies": float(np.isin(episodes.search_status, SHORT_REPLIES).sum() / max(searched.sum(), 1)),
        "groups_with_signal": float(groups_with_signal(scores, episodes.group_id).mean()),
        "response_tokens": float(per_role[0]),
        "document_tokens": float(per_role[1]),
        "repetition": repetition(written),
        "rounds": experience.rounds,
        **{f"occupancy/{name}": share for name, share in experience.occupancy.items()},
        **({} if experience.requests_saved is None else {"requests_saved": experience.requests_saved}),
        "length": float(episodes.length.mean()),
        **{f"share_{name}": float(share) for name, share in zip(types.STATUS_NAMES[1:], status[1:], strict=True)},
    }


def search_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares of all searches: gold within reach, repeated queries, results without news; 0 without searches."""
    reached = repeated = stale = searches = 0
    for outcome in outcomes:
        queries, lines = set(), set()
        for query, documents in zip(outcome.queries, outcome.documents, strict=True):
            words, shown = rewards.normalize_answer(query), set(documents.splitlines())
            searches += 1
            reached += reach(documents, outcome.golds) > 0
            repeated += words in queries
            stale += bool(shown) and shown <= lines
            queries.add(words)
            lines |= shown
    return {name: count / max(searches, 1)
            for name, count in (("reach", reached), ("repeated_queries", repeated), ("results_without_news", stale))}


def repetition(rows: Sequence[Sequence[int]], n: int = 4) -> float:
    """Share of n-grams that occurred before in the same row, mean over rows; 0 where a row has fewer than n tokens.

    Args:
      rows: token ids that the policy wrote, one sequence an episode.
    """
    return float(np.mean([_repeated(np.asarray(row, np.int64), n) for row in rows])) if len(rows) else 0.0


def _repeated(row, n):
    if len(row) < n:
        return 0.0
    # A polynomial over 2^64 names an n-gram; a collision would need millions of different ones in a row.
    grams = np.zeros(len(row) - n + 1, np.uint64)
    for i in range(n):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + row[i:len(row) - n + 1 + i].astype(np.uint64) + np.uint64(1)
    return 1.0 - len(np.unique(grams)) / len(grams)


def save_trajectories(path: pathlib.Path, episodes, questions, tokenizer, scores, *, every: bool = False):
    """Writes trajectories as JSON lines: one a question, or all."""
    _, first = np.unique(episodes.group_id, return_index=True)
    rows = None if every else sorted(first.tolist())
    write_jsonl(path, transcript.records(episodes, questions, tokenizer, rows=rows, reward=scores))
