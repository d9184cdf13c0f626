"""What int8 weights and int8 caches change in episodes: the tiny world's rollouts, four ways, with the same draws.

    python benchmarks/quant_rollouts.py [--questions 48] [--group 4] [--dtype bfloat16]

The carried policy plays against the carried simulator at the same seed. Reported for each: the share of episodes whose
tokens are all those of the plain way, the mean reward (F1) and its paired difference, how far the sampler's log-probs are
from the trainer's (the training forward in the same dtype, whose keys and values are never rounded), and the bytes. A JSON
line each. Needs jax, flax, optax, numpy; safetensors, tokenizers and transformers for the carried checkpoints.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np

from zsjax import config as configuration
from zsjax import rewards
from zsjax.models.quant import num_bytes
from zsjax.rl import roles
from zsjax.rl.steps import make_score
from zsjax.rollout import make_rollout, transcript
from zsjax.run import build

WAYS = {  # name: (the simulator's quantize, cache_dtype of both models)
    "plain": ("none", "model"),
    "int8 simulator weights": ("int8", "model"),
    "int8 caches": ("none", "int8"),
    "both": ("int8", "int8"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    experiment = pathlib.Path(__file__).parents[1] / "experiments" / "tiny_world.py"
    given = {f"{name}.{field}": options.dtype for name in ("policy", "simulator") for field in ("dtype", "param_dtype")}
    settings = configuration.resolve(configuration.load_experiment(str(experiment)), given)
    tokenizer = build.tokenizer(settings)
    model, params = build.model(settings.policy, tokenizer, seed=0, path="asset:tiny_world/policy")
    theirs = build.model(settings.simulator, tokenizer, seed=0, path="asset:tiny_world/simulator")
    questions = build.questions(settings, settings.data.train, options.questions)
    score = make_score(model, chunk=settings.train.logprob_chunk)
    plain = None
    for name, (weights, cache) in WAYS.items():
        config = dataclasses.replace(
            settings, policy=dataclasses.replace(settings.policy, cache_dtype=cache),
            simulator=dataclasses.replace(settings.simulator, cache_dtype=cache, quantize=weights))
        simulator = build.frozen(config.simulator, build.simulator(config, *theirs, tokenizer))
        rollout = make_rollout(model, simulator, tokenizer, config, group_size=options.group)
        played = jax.device_get(rollout.play(params, questions, noise=0.5, key=jax.random.key(1)))
        episodes, work = played.episodes, played.work
        golds = [question.golden_answers for question in questions for _ in range(options.group)]
        reward = np.array([rewards.f1_score(answer, gold) for answer, gold in zip(
            transcript.answers(episodes, tokenizer), golds, strict=True)])
        trained, _ = score(params, episodes.tokens, roles.attention_mask(episodes.roles))
        delta = (np.asarray(trained) - episodes.behavior_logprobs)[np.asarray(roles.loss_mask(episodes.roles))]
        plain = plain or (episodes.tokens, reward)
        change = reward - plain[1]

        def rounded(x):
            return float(f"{float(x):.3g}")

        print(json.dumps({
            "way": name, "episodes": len(reward), "same_tokens": rounded((episodes.tokens == plain[0]).all(axis=1).mean()),
            "reward": rounded(reward.mean()), "change": rounded(change.mean()),
            "change_se": rounded(change.std(ddof=1) / len(change)**0.5),
            # E[e^d - 1 - d] of the sampler's own tokens, d = trainer's - sampler's log-prob: KL(sampler || trainer), k3
            "kl_per_token": rounded((np.expm1(delta) - delta).mean()), "gap_mean": rounded(np.abs(delta).mean()),
            "gap_p99": rounded(np.quantile(np.abs(delta), 0.99)), "policy_cache_bytes": int(work.policy_cache[0]),
            "simulator_cache_bytes": int(work.simulator_cache[0]), "simulator_weight_bytes": num_bytes(simulator.params),
            "policy_tokens": len(delta)}), flush=True)


if __name__ == "__main__":
    main()
