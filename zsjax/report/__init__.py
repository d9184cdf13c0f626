"""The HTML report of a run: one self-contained file with curves, tables and trajectories by role.

It is made of what lies in the run's folder, none of which must exist: config.json, metrics.jsonl, evaluation.json,
gates.json, trajectories/*.jsonl (training) and evaluation/*.json[l]. Text that models wrote is data: everything is
escaped, and the page's own policy forbids it scripts and network.
"""

import json
import math
import os
import pathlib
import types
from collections.abc import Mapping, Sequence

from zsjax.evaluation.kept import Kept
from zsjax.monitor import costs
from zsjax.monitor.writer import read_jsonl
from zsjax.report.charts import escape, legend, line_chart, printable, short
from zsjax.report.scores import benchmarks_section, evaluation_section, table
from zsjax.types import STATUS_NAMES

# Curves of a stage: title, unit, {metric: its name in the chart} or the beginning of their names, at least from, at least
# to. A chart whose metrics are
# not there is left out; metrics that are in no chart stand under "other".
CURVES = (
    ("Score in training", "", {"reward": "reward (F1)", "em": "exact match"}, 0, 1),
    ("Real engine, while training", "", {"eval/em": "exact match", "eval/f1": "F1"}, 0, 1),
    ("Real engine, by hops", "exact match", {"eval/em_1_hop": "one hop", "eval/em_2_hop": "two hops"}, 0, 1),
    ("Noise", "share of searches", {"noise": "curriculum", "noisy_share": "drawn"}, 0, None),
    ("Searches", "per question", {"searches": "in training", "eval/searches": "real engine"}, 0, None),
    ("Queries on path", "share of searches", {"on_path": "on path"}, 0, 1),
    ("Length", "tokens per episode", {"response_tokens": "response", "document_tokens": "documents"}, 0, None),
    ("KL to the starting policy", "nats per token", {"kl": "kl"}, 0, None),
    ("Entropy", "nats per token", {"entropy": "entropy"}, 0, None),
    ("Sampler–trainer gap", "nats per token", {"sampler_gap_mean": "mean", "sampler_gap_p99": "99 %",
                                               "sampler_gap_max": "max"}, 0, None),
    ("Terms of the reward", "unweighted", "reward/", None, None),
    ("Terms of the objective", "unweighted", "term/", None, None),
    ("Ends", "share of episodes", {f"share_{name}": name for name in STATUS_NAMES[1:]}, 0, 1),
    ("Repetition", "share of 4-grams seen before", {"repetition": "repetition"}, 0, 1),
    ("Alarms", "1: out of bounds", "alarm/", 0, 1),
    ("Value model", "squared error", {"value/value_error": "error"}, 0, None),
    ("KL coefficient", "", {"kl_coef": "adaptive"}, 0, None),
    ("Groups with a signal", "share of groups", {"groups_with_signal": "groups"}, 0, 1),
    ("Loss", "", {"loss": "loss"}, None, None),
    ("Gradient norm", "before clipping", {"grad_norm": "norm"}, 0, None),
    ("Occupancy", "share of decode steps' places", {"occupancy/policy": "policy", "occupancy/simulator": "simulator"}, 0, 1),
    ("Speed", "tokens per second of a step", {"speed/tokens_per_second": "tokens/s"}, 0, None),
    ("Writing", "tokens per second of rollout", {"speed/policy_tokens_per_second": "policy",
                                                 "speed/document_tokens_per_second": "documents shown"}, 0, None),
    ("Prefill", "share of tokens read and drawn", {"prefill/policy": "policy", "prefill/simulator": "simulator",
                                                   "prefill/operations": "operations, both"}, 0, 1),
    ("Bandwidth reached in decoding", "share of the measured copy", {"speed/bandwidth_share": "at least"}, 0, 1),
    ("Caches", "bytes allocated", {"cache_bytes/policy": "policy", "cache_bytes/simulator": "simulator"}, 0, None),
    ("Compiled programs", "per step", {"compile/step": "compiled", "compile/cached": "from the persistent cache"}, 0, None),
    ("Time", "seconds per step", {"time/step": "step", "time/rollout": "rollout", "time/score": "score",
                                  "time/update": "update", "time/reshard": "weights moved for decoding",
                                  "time/evaluate": "evaluate", "time/checkpoint": "checkpoint"}, 0, None),
)
STAGE_TITLES = {"train": "Reinforcement learning", "pretrain": "Pretraining of the base policy",
                "warm_start": "Warm start of the policy", "pretrain_simulator": "Pretraining of the simulator",
                "tune_simulator": "Tuning of the simulator"}
ROLES = {"prompt": "prompt", "policy": "policy: trained on", "document": "documents: masked",
         "template": "environment: masked"}
MAX_SEGMENT = 4000  # characters shown of one segment
NUM_TRAJECTORIES = 12


def write(workdir) -> pathlib.Path:
    """Writes workdir/report.html from what the run has written so far; returns its path."""
    workdir = pathlib.Path(workdir)
    config = _read_json(workdir / "config.json") or {}
    account = read_jsonl(workdir / "metrics.jsonl")
    lines = [line for line in account if line["stage"] not in ("collect", "evaluate")]  # those have no curves
    evaluation, gates = (_read_json(workdir / f"{name}.json") or [] for name in ("evaluation", "gates"))
    name = str(config.get("name", workdir.name))
    body = [f"<header><h1>{escape(name)}</h1><p>{_facts(config, lines)}</p></header>"]
    body += evaluation_section(evaluation, Kept(workdir)) + benchmarks_section(evaluation) + _gates_section(gates)
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    for stage in sorted(stages, key=lambda stage: stage != "train"):
        body += _curves_section(stage, [line for line in lines if line["stage"] == stage])
    body += _cost_section(account, config.get("cost"))
    body += _trajectories_section(choose_trajectories(workdir))
    if config:
        text = escape(json.dumps(config, indent=2))
        body.append(f"<details><summary>Config</summary><pre>{text}</pre></details>")
    path = workdir / "report.html"
    half = path.with_suffix(".html.new")
    half.write_text(PAGE.replace("{title}", escape(name)).replace("{body}", "\n".join(body)), encoding="utf-8")
    os.replace(half, path)
    return path


def choose_trajectories(workdir) -> list[tuple[str, dict]]:
    """About a dozen (file's name, record): from the first and the last file of training and from evaluations.

    Within a file, best and worst rewards take turns, so that a page of successes cannot hide the failures.
    """
    workdir, found = pathlib.Path(workdir), []
    train, evaluation = (sorted((workdir / name).glob("*.jsonl")) for name in ("trajectories", "evaluation"))
    shown = {row.get("evaluation") for row in _read_json(workdir / "evaluation.json") or []}
    played = [file for file in evaluation if not file.stem.startswith(("baseline_", "random_document"))]
    evaluation = [file for file in played if file.stem in shown] or played  # else of an earlier version
    chosen = list(dict.fromkeys([*train[:1], *train[-1:]])) + evaluation
    for i, file in enumerate(chosen):
        share = -(-(NUM_TRAJECTORIES - len(found)) // (len(chosen) - i))
        rows = sorted(read_jsonl(file), key=lambda row: -_score_of(row))
        order = [row for pair in zip(rows, reversed(rows)) for row in pair][:len(rows)]
        found += [(f"{file.parent.name}/{file.stem}", row) for row in order[:share]]
    return found


def show_episode(record: Mapping, console=None):
    """Prints one trajectory (`zsjax.rollout.transcript.records`) on a terminal, coloured by role."""
    show = episode_printer(console)
    for segment, noisy in zip(record["segments"], noisy_segments(record)):
        if noisy:
            show("noisy", "[noisy] ")
        show(segment["role"], segment["text"])
    print_result(record, console)


TERMINAL_STYLES = {"prompt": "dim", "policy": "bold blue", "document": "yellow", "template": "dim magenta",
                   "noisy": "bold red"}


def episode_printer(console=None):
    """show(role, text): prints pieces of an episode on a terminal, one behind the other, coloured by role."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    return lambda role, text: console.print(Text(printable(text), style=TERMINAL_STYLES.get(role, "")), soft_wrap=True,
                                            end="")


def print_result(record: Mapping, console=None):
    """Prints what stands below an episode: the key to its colours, and its outcome."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    legend = Text("\n")
    for role, style in list(TERMINAL_STYLES.items())[:4]:
        legend.append(f" {role} ", style=style)
    console.print(legend)
    failed = "".join(f"   search {status}" for status in record.get("search_status", ()) if status in ("failed", "empty", "short"))
    console.print(Text(f"answer: {record['answer']}   status: {record['status']}   "
                       f"searches: {record['num_searches']}{failed}"), soft_wrap=True)


def noisy_segments(record: Mapping) -> list[bool]:
    """For each segment of a record, whether it holds documents of a search that was noisy."""
    shown = [noisy for noisy, status in zip(record.get("noisy", ()), record.get("search_status", ()))
             if status in ("ok", "short")]
    flags = iter(shown)
    return [segment["role"] == "document" and next(flags, False) for segment in record.get("segments", ())]


def _facts(config, lines):
    facts = []
    for label, path in (("seed", ("seed",)), ("engine", ("search", "engine")), ("tokenizer", ("tokenizer",)),
                        ("policy", ("policy", "init")), ("simulator", ("simulator", "init"))):
        value = config
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            facts.append(f"{label} <b>{escape(value)}</b>")
    seconds = sum(line.get("time/step") or 0 for line in lines)
    if seconds:
        facts.append(f"<b>{len(lines)}</b> steps written in <b>{seconds / 60:.1f}</b> minutes")
    return " · ".join(facts)


def _cost_section(lines, prices):
    rows = costs.account(lines, types.SimpleNamespace(**prices)) if prices else []
    if not rows:
        return []
    titles = {"stage": "Stage", "episodes": "Episodes", "searches": "Searches", "policy_tokens": "Policy tokens",
              "document_tokens": "Document tokens", "accelerator_hours": "Accelerator hours",
              "accelerator_dollars": "$ accelerators", "paid_dollars": "$ paid searches",
              "api_dollars": "$ at a web search API"}
    head = "".join(f"<th>{title}</th>" for title in titles.values())
    body = "".join("<tr>" + "".join(f"<td class='num'>{escape(short(row[name]))}</td>" for name in titles) + "</tr>"
                   for row in rows)
    return [f"<section><h2>Cost</h2><p>By the prices of the config. {escape(costs.comparison(rows))}</p>"
            f"{table(head, body)}</section>"]


def _gates_section(gates):
    out = []
    for name in dict.fromkeys(str(row.get("gate", "")) for row in gates):
        rows = [row for row in gates if str(row.get("gate", "")) == name]
        columns = list(dict.fromkeys(column for row in rows for column in row if column != "gate"))
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        body = "".join("<tr>" + "".join(f"<td>{_gate_value(row.get(column))}</td>" for column in columns) + "</tr>"
                       for row in rows)
        out.append(f"<h3>{escape(name)}</h3>{table(head, body)}")
    return [f"<section><h2>Gates</h2><p>What was measured before the next stage was let begin.</p>{''.join(out)}"
            f"</section>"] if out else []


def _gate_value(value):
    if isinstance(value, bool):
        return "<b class=good>passed</b>" if value else "<b class=bad>failed</b>"
    return escape(short(value) if isinstance(value, int | float) else str("" if value is None else value))


def _curves_section(stage, lines):
    used, charts = {"step", "stage"}, []
    logged = list(dict.fromkeys(name for line in lines for name in line))
    for title, unit, names, low, high in CURVES:
        if isinstance(names, str):
            names = {name: name.removeprefix(names) for name in logged if name.startswith(names)}
        charts.append(_chart(title, unit, names, lines, low, high))
        used |= names.keys()
    rest = sorted({name for line in lines for name, value in line.items()
                   if name not in used and "used/" not in name and isinstance(value, int | float)})
    others = "".join(_chart(name, "", {name: name}, lines, None, None) for name in rest)
    more = f"<details><summary>Other metrics</summary><div class=charts>{others}</div></details>" if others else ""
    title = escape(STAGE_TITLES.get(stage, stage))
    if not any(charts) and not others:
        return []
    return [f"<section><h2>{title}</h2><div class=charts>{''.join(charts)}</div>{more}</section>"]


def _chart(title, unit, names, lines, low, high):
    number = lambda value: float(value) if isinstance(value, int | float | str) and value != "" else math.nan
    series = {label: [(line["step"], number(line[name])) for line in lines if name in line]
              for name, label in names.items()}
    series = {label: points for label, points in series.items() if points}
    svg = line_chart(series, low=low, high=high) if series else ""
    if not svg:
        return ""
    last = "" if len(series) > 1 else f"<b>{escape(short(next(iter(series.values()))[-1][1]))}</b>"
    keys = legend(list(series)) if len(series) > 1 else ""
    return (f"<figure><figcaption><span>{escape(title)} <small>{escape(unit)}</small></span>{last}"
            f"</figcaption>{keys}{svg}</figure>")


def _trajectories_section(chosen):
    if not chosen:
        return []
    keys = "".join(f"<span class='seg {role}'>{text}</span> " for role, text in ROLES.items())
    keys += "<span class='noisy'>noisy search</span>"
    cards = "".join(_card(source, record) for source, record in chosen)
    return [f"<section><h2>Trajectories</h2><p class=roles>{keys} Hatched tokens are masked: they are read, never "
            f"trained on.</p>{cards}</section>"]


def _card(source, record):
    golds = " / ".join(map(str, record.get("golden_answers", ())))
    facts = [f"{name} <b>{escape(short(record[name]))}</b>" for name in ("reward", "em", "f1")
             if isinstance(record.get(name), int | float)]
    facts += [f"{escape(name)} <b>{escape(record[key])}</b>"
              for name, key in (("status", "status"), ("searches", "num_searches")) if key in record]
    text = []
    for segment, noisy in zip(record.get("segments", ()), noisy_segments(record)):
        role = segment["role"] if segment["role"] in ROLES else "template"
        shown = printable(segment["text"])
        cut = f"… ({len(shown) - MAX_SEGMENT} more characters)" if len(shown) > MAX_SEGMENT else ""
        badge = "<span class='noisy'>noisy</span>" if noisy else ""
        text.append(f"{badge}<span class='seg {role}{' dirty' if noisy else ''}' title='{role}'>"
                    f"{escape(shown[:MAX_SEGMENT] + cut)}</span>")
    result = "win" if _score_of(record) >= 0.5 else "miss"
    return (f"<article class={result}><h3>{escape(record.get('question', ''))}</h3>"
            f"<p>gold <b>{escape(golds)}</b> · {' · '.join(facts)} · <small>{escape(source)}</small></p>"
            f"<div class=text>{''.join(text)}</div></article>")


def _score_of(record) -> float:
    for name in ("reward", "f1", "em"):
        if isinstance(record.get(name), int | float):
            return float(record[name])
    return 0.0


def _read_json(path) -> dict | Sequence | None:
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:  # written by hand or cut: the rest of the report is still worth having
        return None


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>
:root { color-scheme: light; --ink: #1e293b; --soft: #64748b; --rule: #e2e8f0; --good: #059669; --bad: #dc2626 }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: #f8fafc; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { margin: 0; font-size: 26px } h2 { margin: 0 0 6px; font-size: 19px } h3 { margin: 0; font-size: 16px }
header p, section > p { margin: 4px 0 14px; color: var(--soft) } header b { color: var(--ink); font-weight: 600 }
section, details { margin-top: 26px } summary { cursor: pointer; color: var(--soft); margin-bottom: 10px }
small { color: var(--soft); font-weight: normal; font-size: 12px }
.good { color: var(--good) } .bad { color: var(--bad) }
h3 + .scroll { margin: 4px 0 12px }
.scroll { overflow-x: auto; background: #fff; border: 1px solid var(--rule); border-radius: 10px }
table { border-collapse: collapse; width: 100% } th { text-align: left; font-size: 13px; color: var(--soft) }
th, td { padding: 7px 12px; white-space: nowrap } td.name { white-space: normal; font-weight: 600 }
tr.first td { border-top: 1px solid var(--rule) } .num, .score { font-variant-numeric: tabular-nums }
.score { position: relative; min-width: 150px } .score span:last-child { position: relative }
.bar { position: absolute; left: 6px; top: calc(50% - 13px); height: 26px; background: #dbeafe; border-radius: 4px;
  max-width: calc(100% - 12px) }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 14px }
figure { margin: 0; padding: 12px 12px 4px; background: #fff; border: 1px solid var(--rule); border-radius: 10px }
figcaption { display: flex; gap: 8px; justify-content: space-between; font-weight: 600; font-size: 14px }
.keys { display: flex; gap: 12px; font-size: 12px; color: var(--soft) }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; margin: 0 5px 3px 0; background: var(--c) }
svg { display: block; width: 100%; height: auto; font-size: 10.5px } svg text { fill: var(--soft) }
.grid { stroke: var(--rule) } .raw { fill: none; stroke-width: 1; opacity: .35 }
.line { fill: none; stroke-width: 2; stroke-linejoin: round } circle { fill-opacity: 0 } .dot { fill-opacity: 1 }
article { margin: 12px 0; padding: 12px 14px; background: #fff; border: 1px solid var(--rule);
  border-left: 4px solid var(--good); border-radius: 10px; color: var(--ink) }
article.miss { border-left-color: var(--bad) }
article p { margin: 2px 0 10px; font-size: 13px; color: var(--soft) } article p b { color: var(--ink) }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.75 ui-monospace, Menlo, Consolas, monospace }
.seg { padding: 2px 1px; border-radius: 3px; box-decoration-break: clone; -webkit-box-decoration-break: clone }
.prompt { color: var(--soft); background: #f1f5f9 } .policy { background: #dbeafe; color: #1e3a8a }
.document { background: repeating-linear-gradient(135deg, #fde68a 0 3px, #fef9e7 3px 8px); color: #713f12 }
.template { background: repeating-linear-gradient(135deg, #d4d8de 0 3px, #f5f6f8 3px 8px); color: #475569 }
.prompt { background: repeating-linear-gradient(135deg, #e8ecf1 0 3px, #f8fafc 3px 8px) }
.dirty { outline: 1.5px dashed var(--bad) }
.noisy { background: var(--bad); color: #fff; border-radius: 4px; padding: 1px 6px; margin: 0 4px;
  font: 600 11px/1.4 system-ui }
.roles .seg { padding: 2px 8px; margin-right: 4px; font-size: 13px }
pre { background: #fff; border: 1px solid var(--rule); border-radius: 10px; padding: 12px; overflow-x: auto;
  font-size: 12px }
</style></head><body>
{body}
</body></html>
"""
