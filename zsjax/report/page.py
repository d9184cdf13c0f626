"""The HTML report of a run: one self-contained file with curves, tables and trajectories by role.

It shows whatever the run has written so far. Every input is optional: config.json, metrics.jsonl, evaluation.json,
gates.json, trajectories/*.jsonl (training) and evaluation/*.json[l]. `page.html.j2` lays out what `contents` gathers. Text
that models wrote is data: the template escapes everything, and the page's own policy forbids it scripts and network.
"""

import fnmatch
import json
import math
import pathlib
import types
from collections.abc import Mapping
from typing import NamedTuple

from zsjax.errors import printable
from zsjax.evaluation import tables
from zsjax.evaluation.kept_evaluations import Kept
from zsjax.monitor import costs
from zsjax.monitor.catalog import METRICS
from zsjax.parallel.files import remove_abandoned, write_text
from zsjax.report.charts import color_of, line_chart, short
from zsjax.report.run_files import json_or_none, read_metrics, read_scores, read_trajectories
from zsjax.report.scores import evaluation_tables
from zsjax.report.trajectory_index import score_of


class Curve(NamedTuple):
    """A chart of a stage.

    Attributes:
      names: {metric: its name in the chart}.
      low, high: the vertical axis reaches at least these.
    """

    title: str
    unit: str
    names: Mapping[str, str]
    low: float | None
    high: float | None


# Charts of a stage, in order: title -> unit. `zsjax.types.Metric.chart` says which metrics a chart shows. A chart without
# metrics is left out; metrics without a chart stand under "other".
CHARTS = {
    "Score in training": "", "Real engine, while training": "", "Real engine, by hops": "exact match",
    "Noise": "share of searches", "Searches": "per question", "Queries on path": "share of searches",
    "News of searches": "share of searches", "Length": "tokens per episode", "KL to the starting policy": "nats per token",
    "Entropy": "nats per token", "Likelihood of right episodes": "nats per token", "Sampler–trainer gap": "nats per token",
    "Ratio of positive tokens": "trainer's over sampler's probability",
    "Terms of the reward": "unweighted", "Terms of the objective": "unweighted", "Ends": "share of episodes",
    "Repetition": "share of 4-grams seen before", "Alarms": "1: out of bounds", "Value model": "squared error",
    "KL coefficient": "", "Groups with a signal": "share of groups", "Loss": "", "Gradient norm": "before clipping",
    "Occupancy": "share of decode steps' places", "Speed": "tokens per second of a step",
    "Writing": "tokens per second of rollout", "Prefill": "share of tokens read and drawn",
    "Bandwidth reached in decoding": "share of the measured copy", "Caches": "bytes allocated",
    "Compiled programs": "per step", "Time": "seconds per step", "Memory": "bytes, the peak of each phase",
    "Memory of accelerators": "bytes, the peak so far after each phase",
}
STAGE_TITLES = {"train": "Reinforcement learning", "pretrain": "Pretraining of the base policy",
                "warm_start": "Warm start of the policy", "pretrain_simulator": "Pretraining of the simulator",
                "tune_simulator": "Tuning of the simulator"}
ROLES = {"prompt": "prompt", "policy": "policy: trained on", "document": "documents: masked",
         "template": "environment: masked"}
MAX_SEGMENT = 4000  # characters shown of one segment
NUM_TRAJECTORIES = 12
_PRICES = ("search", "accelerator_hour")
COSTS = {"stage": "Stage", "episodes": "Episodes", "searches": "Searches", "policy_tokens": "Policy tokens",
         "document_tokens": "Document tokens", "accelerator_hours": "Accelerator hours",
         "accelerator_dollars": "$ accelerators", "paid_dollars": "$ paid searches",
         "api_dollars": "$ at a web search API"}


def write(workdir) -> pathlib.Path:
    """Writes workdir/report.html from what the run has written so far; returns its path.

    Raises InputError for a file in another form than zsjax writes.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "report.html"
    remove_abandoned(path)
    write_text(path, templates().get_template("page.html.j2").render(contents(workdir)))
    return path


def templates():
    """The jinja2 environment of this folder: text is made printable, then escaped. The charts escape their own texts."""
    import jinja2
    import markupsafe

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value)
    made.filters |= {"short": short, "svg": markupsafe.Markup}
    return made


def contents(workdir: pathlib.Path) -> dict:
    """The template's values for a run's folder."""
    config = json_or_none(workdir / "config.json")
    config = config if isinstance(config, dict) else {}
    account = read_metrics(workdir)
    lines = [line for line in account if line["stage"] not in ("collect", "evaluate")]  # these have no curves
    evaluation, gates = (read_scores(workdir / f"{name}.json") for name in ("evaluation", "gates"))
    stages = sorted(dict.fromkeys(line["stage"] for line in lines), key=lambda stage: stage != "train")
    prices = config.get("cost")
    priced = isinstance(prices, dict) and all(isinstance(prices.get(name), int | float) for name in _PRICES)
    paid = costs.account(account, types.SimpleNamespace(**prices)) if priced else []
    in_paper = any(tables.canonical(str(row.get("data_set"))) in tables.DATA_SETS for row in evaluation)
    return {
        "name": str(config.get("name", workdir.name)), "facts": _facts(config), "num_lines": len(lines),
        "seconds": sum(line.get("time/step") or 0 for line in lines),
        "evaluation": evaluation_tables(evaluation, Kept(workdir)),
        "published": tables.paper_table(evaluation) if in_paper else None, "note": tables.NOTE,
        "gates": _gates(gates), "stages": [_stage(name, [row for row in lines if row["stage"] == name]) for name in stages],
        "costs": paid, "cost_columns": COSTS, "comparison": costs.comparison(paid), "roles": ROLES,
        "trajectories": [_card(source, record) for source, record in choose_trajectories(workdir)],
        "config": json.dumps(config, indent=2) if config else ""}


def choose_trajectories(workdir) -> list[tuple[str, dict]]:
    """About a dozen (file's name, record) of the first and the last file of training and of evaluations.

    Best and worst rewards of a file alternate, so that successes cannot hide failures.
    """
    workdir, found = pathlib.Path(workdir), []
    train, evaluation = (sorted((workdir / name).glob("*.jsonl")) for name in ("trajectories", "evaluation"))
    shown = {row.get("evaluation") for row in read_scores(workdir / "evaluation.json")}
    played = [file for file in evaluation if not file.stem.startswith(("baseline_", "random_document"))]
    evaluation = [file for file in played if file.stem in shown] or played  # else of an earlier version
    chosen = list(dict.fromkeys([*train[:1], *train[-1:]])) + evaluation
    for i, file in enumerate(chosen):
        share = -(-(NUM_TRAJECTORIES - len(found)) // (len(chosen) - i))
        rows = sorted(read_trajectories(file), key=lambda row: -(score_of(row) or 0.0))
        order = [row for pair in zip(rows, reversed(rows), strict=True) for row in pair][:len(rows)]
        found += [(f"{file.parent.name}/{file.stem}", row) for row in order[:share]]
    return found


def noisy_segments(record: Mapping) -> list[bool]:
    """For each segment of a record, whether it holds documents of a noisy search."""
    shown = [noisy for noisy, status in zip(record.get("noisy", ()), record.get("search_status", ()), strict=False)
             if status in ("ok", "short")]
    flags = iter(shown)
    return [segment["role"] == "document" and next(flags, False) for segment in record.get("segments", ())]


def _facts(config):
    facts = {}
    for label, path in (("seed", ("seed",)), ("engine", ("search", "engine")), ("tokenizer", ("tokenizer",)),
                        ("policy", ("policy", "init")), ("simulator", ("simulator", "init"))):
        value = config
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            facts[label] = value
    return facts


def _gates(gates):
    """{gate: (columns, rows)}."""
    found = {}
    for name in dict.fromkeys(str(row.get("gate", "")) for row in gates):
        rows = [row for row in gates if str(row.get("gate", "")) == name]
        found[name] = list(dict.fromkeys(column for row in rows for column in row if column != "gate")), rows
    return found


def _stage(stage, lines):
    used, charts = {"step", "stage"}, []
    metrics = list(dict.fromkeys(name for line in lines for name in line))
    for title, unit in CHARTS.items():
        shown = [metric for metric in METRICS if metric.chart == title]
        names = {name: metric.curve or name.partition("/")[2] for metric in shown
                 for name in (fnmatch.filter(metrics, metric.name) if "*" in metric.name else [metric.name])}
        charts.append(_chart(Curve(title, unit, names, shown[0].low, shown[0].high), lines))
        used |= names.keys()
    others = [_chart(Curve(name, "", {name: name}, None, None), lines) for name in sorted(metrics) if name not in used
              and "used/" not in name and any(isinstance(line.get(name), int | float) for line in lines)]
    return {"title": STAGE_TITLES.get(stage, stage), "charts": list(filter(None, charts)),
            "others": list(filter(None, others))}


def _chart(curve, lines):
    series = {label: [(line["step"], _number(line[name])) for line in lines if name in line]
              for name, label in curve.names.items()}
    series = {label: points for label, points in series.items() if points}
    svg = line_chart(series, low=curve.low, high=curve.high) if series else ""
    last = next(iter(series.values()))[-1][1] if len(series) == 1 else None
    legend = [(color_of(index), name) for index, name in enumerate(series)] if len(series) > 1 else []
    return {"title": curve.title, "unit": curve.unit, "last": last, "legend": legend, "svg": svg} if svg else None


def _number(value) -> float:
    return float(value) if value is not None else math.nan


def _card(source, record):
    facts = {name: short(record[name]) for name in ("reward", "em", "f1") if isinstance(record.get(name), int | float)}
    facts |= {name: record[key] for name, key in (("status", "status"), ("searches", "num_searches")) if key in record}
    segments = [{"role": segment["role"] if segment["role"] in ROLES else "template", "noisy": noisy,
                 "text": segment["text"][:MAX_SEGMENT], "more": max(0, len(segment["text"]) - MAX_SEGMENT)}
                for segment, noisy in zip(record.get("segments", ()), noisy_segments(record), strict=True)]
    return {"source": source, "question": record.get("question", ""), "facts": facts, "segments": segments,
            "golds": " / ".join(map(str, record.get("golden_answers", ()))), "win": (score_of(record) or 0.0) >= 0.5}

