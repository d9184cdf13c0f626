"""transformers on torch: `generate`, alone or as the reference's rollout uses it: nothing is kept between two calls.

Workloads: see benchmarks/rollout.py. The realistic rollout follows the reference's protocol: no stop strings, every turn
decodes up to its budget, what stands behind the tag is cut off afterwards, and the whole history is prefilled again. How
long the kept texts are is given (`trajectories`, those of our run), and the simulator stops at the longest reply of its
batch. Rows that have ended are left out.
"""

import json
import pathlib
import sys

import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from turns import serve


def main():
    options = json.loads(sys.argv[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options["checkpoint"], dtype=getattr(torch, options["dtype"]), attn_implementation="sdpa").eval().to(device)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0  # no row ends early
    vocabulary = model.config.vocab_size
    cache = {"eager": {}, "static": {"cache_implementation": "static", "disable_compile": True}}[options["cache"]]

    def continued(ids, mask, new):
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=True, temperature=1.0, top_k=0,
                                 top_p=1.0, **cache)
        if out.shape[1] != ids.shape[1] + new:
            raise RuntimeError(f"{out.shape[1] - ids.shape[1]} new tokens, wanted {new}")
        return out[:, ids.shape[1]:]

    def random_ids(rows, size):
        return torch.randint(3, vocabulary, (rows, size), device=device)

    def whole(ids, new):
        return continued(ids, torch.ones_like(ids), new)

    def decode(w):
        prompts = random_ids(w["batch"], w["prompt"])
        whole(prompts, 4)

        def run():
            whole(prompts, w["new"]).cpu()
            return {"tokens": w["batch"] * w["new"]}

        return run

    def fixed(w):
        prompts, simulator = (random_ids(w["batch"], w[name]) for name in ("prompt", "simulator_prompt"))
        whole(prompts, 4)

        def run():
            ids = prompts
            for _ in range(w["turns"]):
                ids = torch.cat([ids, whole(ids, w["turn_tokens"]), whole(simulator, w["document_tokens"])], 1)
            ids.cpu()
            return {"tokens": w["batch"] * w["turns"] * w["turn_tokens"]}

        return run

    def realistic(w):
        whole(random_ids(w["batch"], w["prompt"]), 4)

        def run():
            for first in range(0, len(w["trajectories"]), w["peer_rows"]):
                play(w, w["trajectories"][first:first + w["peer_rows"]])
            return {"tokens": sum(policy for lengths in w["trajectories"] for policy, _ in lengths)}

        return run

    def play(w, trajectories):
        """A batch of episodes, turn by turn together."""
        rows = [torch.randint(3, vocabulary, (w["prompt"],)) for _ in trajectories]
        for turn in range(max(map(len, trajectories))):
            live = [i for i, lengths in enumerate(trajectories) if turn < len(lengths)]
            spoken = continued(*_left_padded([rows[i] for i in live], device), w["turn_tokens"]).cpu()
            kept = [trajectories[i][turn] for i in live]
            asks = [n for n, (_, documents) in enumerate(kept) if documents]
            replies = {}
            if asks:
                longest = max(kept[n][1] for n in asks)
                prompts = random_ids(len(asks), w["simulator_prompt"])
                replies = dict(zip(asks, whole(prompts, longest).cpu(), strict=True))
            for n, (i, (policy, documents)) in enumerate(zip(live, kept, strict=True)):
                rows[i] = torch.cat([rows[i], spoken[n, :policy], *([replies[n][:documents]] if documents else [])])

    kinds = {"decode": decode, "fixed": fixed, "realistic": realistic}
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    serve({"torch": torch.__version__, "transformers": transformers.__version__, "device": name},
          lambda workload: kinds[workload["kind"]](workload))


def _left_padded(rows, device):
    size = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), size, dtype=torch.long), torch.zeros(len(rows), size, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, size - len(row):], mask[i, size - len(row):] = row, 1
    return ids.to(device), mask.to(device)


if __name__ == "__main__":
    main()
