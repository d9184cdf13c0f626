"""What a step of reinforcement learning tells about its episodes: means for the metrics, trajectories for people."""

import pathlib

import numpy as np

from zsjax import rewards, types
from zsjax.evaluate import on_path
from zsjax.monitor.health import repetition
from zsjax.parallel.files import write_jsonl
from zsjax.rl import roles
from zsjax.rollout import transcript
from zsjax.rollout.experience import Experience
from zsjax.types import TokenBatch

SHORT_REPLIES = (types.SEARCH_SHORT, types.SEARCH_EMPTY, types.SEARCH_FAILED)


def sampler_gap(batch: TokenBatch) -> dict[str, float]:
    """|log-prob recomputed by the trainer - recorded by the sampler| over POLICY tokens, in nats."""
    gap = np.abs(np.asarray(batch.old_logprobs) - np.asarray(batch.behavior_logprobs))
    gap = gap[np.asarray(roles.loss_mask(batch.roles))]
    return {"sampler_gap_mean": float(gap.mean()), "sampler_gap_p99": float(np.quantile(gap, 0.99)),
            "sampler_gap_max": float(gap.max())}


def episode_metrics(played: Experience) -> dict[str, float]:
    """Means over the step's episodes."""
    episodes, scores = played.episodes, played.scores
    right, searches = np.sum([on_path({"queries": o.queries}, q) for o, q in zip(played.outcomes, played.questions)],
                             axis=0)
    status = np.bincount(episodes.status, minlength=len(types.STATUS_NAMES)) / len(scores)
    per_role = [(episodes.roles == role).sum() / len(scores) for role in (types.POLICY, types.DOCUMENT)]
    ran = episodes.search_status != types.NOT_SEARCHED
    groups = {}
    for group, value in zip(episodes.group_id.tolist(), scores.tolist()):
        groups.setdefault(group, []).append(value)
    written = [np.concatenate([np.zeros(0, np.int32), *transcript.generations(episodes, b)]) for b in range(len(scores))]
    return {
        "reward": float(scores.mean()),
        **{f"reward/{name}": float(values.mean()) for name, values in played.terms.items()},
        "em": float(np.mean([rewards.exact_match(o.answer, o.golds) for o in played.outcomes])),
        "searches": float(episodes.num_searches.mean()),
        "on_path": float(right / searches) if searches else 0.0,
        "noisy_share": float(episodes.noisy.sum() / max(episodes.noisy.shape[2] * episodes.num_searches.sum(), 1)),
        "invalid_actions": float((episodes.search_status == types.INVALID_ACTION).sum() / len(scores)),
        "short_replies": float(np.isin(episodes.search_status, SHORT_REPLIES).sum() / max(ran.sum(), 1)),
        "groups_with_signal": float(np.mean([len(set(values)) > 1 for values in groups.values()])),
        "response_tokens": float(per_role[0]),
        "document_tokens": float(per_role[1]),
        "repetition": repetition(written),
        "rounds": played.rounds,
        **{f"occupancy/{name}": share for name, share in played.occupancy.items()},
        **({} if played.requests_saved is None else {"requests_saved": played.requests_saved}),
        "length": float(episodes.length.mean()),
        **{f"share_{name}": float(share) for name, share in zip(types.STATUS_NAMES[1:], status[1:])},
    }


def save_trajectories(path: pathlib.Path, episodes, questions, tokenizer, scores, *, every: bool = False):
    """Writes trajectories as JSON lines: one a question, or all."""
    _, first = np.unique(episodes.group_id, return_index=True)
    rows = None if every else sorted(first.tolist())
    write_jsonl(path, transcript.records(episodes, questions, tokenizer, rows=rows, reward=scores))
