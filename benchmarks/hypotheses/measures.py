"""What the ledger keeps of a finished run's folder: its measures, some curves, and where it was run."""

import itertools
import json
import pathlib
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

import jax

from zsjax.config import CostConfig
from zsjax.evaluation.kept_evaluations import Kept
from zsjax.monitor import costs
from zsjax.monitor.writer import read_jsonl
from zsjax.search.engine import Document
from zsjax.tiny_world import world as tiny_world

CURVES = ("reward", "entropy", "repetition", "searches", "response_tokens", "on_path", "share_answered", "kl", "grad_norm",
          "noise", "groups_with_signal", "right_logprob", "positive_ratio_min", "reach", "repeated_queries",
          "results_without_news",
          "eval/em", "eval/searches")
PARTS = {"before": "em_before", "after": "em", "after_lossy": "em_lost", "after_misinformed": "em_wrong"}
FACT = re.compile(r"(\w+) of (\w+ \w+) is (\w+ \w+)\.")


def of_run(folder: pathlib.Path) -> dict:
    """{"measures": {name: float}, "curves": {metric: list, one a step}, "config": dict, "device": text}.

    Measures: em, em_before, em_lost, em_wrong (means over the numbers of hops) and em_1, em_2, ...; em_multi, of more than
    one hop; em_faulty, the mean of em_lost and em_wrong; words_per_answer, over the episodes with an answer; searches;
    reward (of the last tenth of the steps); fall, how far the last evaluation in training is below the best; contradicted
    and false_facts, see `consistency`; and of the run's own account train_searches, train_tokens, train_seconds,
    api_dollars, device_dollars. A measure of nothing is left out.
    """
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if line["stage"] == "train"]
    kept, measures = Kept(folder), {}
    own = {row["evaluation"] for row in json.loads((folder / "evaluation.json").read_text())}
    for evaluation in kept.all():
        if evaluation.name not in own:  # another run's evaluation of the base
            continue
        if evaluation.part in PARTS:
            measures |= _scores(PARTS[evaluation.part], evaluation.rows)
        if evaluation.part == "after":
            records = kept.records(evaluation.name)
            if answers := [record["answer"] for record in records if record["answer"] is not None]:
                measures["words_per_answer"] = statistics.mean(len(answer.split()) for answer in answers)
            measures["searches"] = statistics.mean(record["num_searches"] for record in records)
    if {"em_lost", "em_wrong"} <= measures.keys():
        measures["em_faulty"] = (measures["em_lost"] + measures["em_wrong"]) / 2
    last = lines[-max(len(lines) // 10, 1):]
    measures["reward"] = statistics.mean(line["reward"] for line in last)
    watched = [line["eval/em"] for line in lines if "eval/em" in line]
    if watched:
        measures["fall"] = max(watched) - watched[-1]
    config = json.loads((folder / "config.json").read_text())
    shown = [record for path in sorted((folder / "trajectories").glob("train_*.jsonl")) for record in read_jsonl(path)]
    if shown:
        worlds = tiny_world.worlds_of(config["data"]["corpus"], **config["world"])
        measures |= consistency(shown, tiny_world.documents(worlds))
    measures |= _account(lines)
    curves = {name: [line.get(name) for line in lines] for name in CURVES if any(name in line for line in lines)}
    return {"measures": measures, "curves": curves, "config": config,
            "device": f"{platform.machine()} {_processor()}, jax {jax.__version__}"}


def _scores(name: str, rows: Sequence[Mapping]) -> dict[str, float]:
    """EM by number of hops, and its means over all of them and over those above one."""
    by_hops = {row["hops"]: row["em"] for row in rows if isinstance(row["hops"], int)}
    found = {name: statistics.mean(by_hops.values())}
    if name == "em":
        found |= {f"em_{hops}": em for hops, em in by_hops.items()}
        if several := [em for hops, em in by_hops.items() if hops > 1]:
            found["em_multi"] = statistics.mean(several)
    return found


def consistency(records: Iterable[Mapping], documents: Iterable[Document]) -> dict[str, float]:
    """How the documents that a run's episodes were shown agree with each other and with the world.

    Args:
      records: of the whole run. A reply that an episode was shown twice counts once.
      documents: the world's.

    Returns:
      contradicted: P(two replies that tell the same fact name different objects), the mean over facts told by two at
        least. The share of facts with two objects would rise with the number of replies alone.
      false_facts: share of told facts that no document of the world tells. Either is left out where nothing was told.
    """
    told: dict[tuple, list] = {}
    for record in records:
        for reply in {frozenset(FACT.findall(part["text"])) for part in record["segments"] if part["role"] == "document"}:
            for relation, subject, other in reply:
                told.setdefault((relation, subject), []).append(other)
    known = {fact for document in documents for fact in FACT.findall(document.text)}
    false = [(*fact, other) not in known for fact, objects in told.items() for other in objects]
    differing = [statistics.mean(a != b for a, b in itertools.combinations(objects, 2))
                 for objects in told.values() if len(objects) > 1]
    found = {"contradicted": differing, "false_facts": false}
    return {name: statistics.mean(values) for name, values in found.items() if values}


def _account(lines) -> dict[str, float]:
    rows = costs.account(lines, CostConfig())
    if not rows:
        return {}
    total = rows[-1]
    return {"train_searches": total["searches"], "train_tokens": total["policy_tokens"] + total["document_tokens"],
            "train_seconds": 3600 * total["accelerator_hours"], "api_dollars": total["api_dollars"],
            "device_dollars": total["accelerator_dollars"]}


def _processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1].strip() if found else platform.processor()
