"""experiments/ledger.md and its plots, from the stored lines and the gates of the models alone."""

import json
import math
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.hypotheses import defaults, outdated, verdict
from benchmarks.hypotheses.entries import Comparison, Correlation, Hypothesis, Ledger
from benchmarks.hypotheses.signs import signs
from benchmarks.hypotheses.verdict import Effect
from zsjax.report import charts

NOT_RUN, UNFINISHED = "not run", "not finished"
AT_STEP = re.compile(r"(.+)@(\d+)")  # a curve's value after that number of steps, beside the measures
COLUMNS = {"em_1": "1 hop", "em_2": "2 hops", "em_3": "3 hops", "em": "all", "em_lost": "lost", "em_wrong": "wrong",
           "searches": "searches", "words_per_answer": "words an answer",
           "contradicted": "contradicted", "false_facts": "false facts", "fall": "fall", "eval/em@10": "step 10",
           "train_searches": "searches in training", "train_tokens": "tokens", "train_seconds": "seconds"}
STYLE = ("<style>text{font:11px sans-serif;fill:#334155}.grid{stroke:#e2e8f0}path{fill:none;stroke-width:1.5}"
         ".raw{opacity:.25}circle:not(.dot){opacity:0}</style>")


class Results:
    """The lines of the ledger's runs, by arm and seed.

    stored: all lines, with those that a later run has replaced; models: the folder of the models that arms start from.
    """

    def __init__(self, ledger: Ledger, lines: Mapping[tuple, Mapping], stored: Sequence[Mapping] = (),
                 models: pathlib.Path | None = None):
        self.ledger, self.lines, self.stored = ledger, lines, stored or list(lines.values())
        self.models = models
        self.outdated = {}  # {(arm, digest, seed): settings that the arm has otherwise today}
        for key, line in lines.items():
            name, digest, _ = key
            if name in ledger.arms and digest == ledger.arms[name].digest and "error" not in line:
                if differing := outdated.differences(ledger.arms[name], line):
                    self.outdated[key] = differing

    def of(self, arm: str) -> dict[int, Mapping]:
        """{seed: line} of the arm as it is defined now; failed and outdated runs are not among them."""
        digest = self.ledger.arms[arm].digest
        return {key[2]: line for key, line in self.lines.items()
                if key[:2] == (arm, digest) and "error" not in line and key not in self.outdated}

    def values(self, arm: str, measure: str) -> dict[int, float]:
        """{seed: value} of the arm's runs that have it. measure: a measure's name, or "CURVE@STEP" for a curve's value."""
        found = {}
        for seed, line in sorted(self.of(arm).items()):
            if at := AT_STEP.fullmatch(measure):
                curve, step = line["curves"].get(at[1], []), int(at[2])
                found[seed] = curve[step - 1] if step <= len(curve) else None
            else:
                found[seed] = line["measures"].get(measure)
        return {seed: value for seed, value in found.items() if value is not None}

    def effect(self, test: Comparison | Correlation, seeds: Sequence[int]) -> Effect | None:
        """The effect over the hypothesis's seeds, None where a run that it needs is missing in all of them."""
        def only(values):
            return {seed: value for seed, value in values.items() if seed in seeds}

        if isinstance(test, Correlation):
            pairs = []
            for arm in test.arms:
                x, y = only(self.values(arm, test.x)), only(self.values(arm, test.y))
                pairs += [(x[seed], y[seed], (arm, seed)) for seed in x if seed in y]
            return verdict.correlation(*zip(*pairs, strict=True)) if pairs else None
        treatment, control = (only(self.values(*side)) for side in (test.treatment, test.control))
        return verdict.paired(treatment, control) if treatment.keys() & control.keys() else None


def write(results: Results, out: pathlib.Path) -> None:
    """Writes out/ledger.md and out/ledger/*.svg."""
    ledger = results.ledger
    plots = out / "ledger"
    plots.mkdir(parents=True, exist_ok=True)
    for old in plots.glob("curves_*.svg"):  # of arms that were removed
        old.unlink()
    (plots / "effects.svg").write_text(effects_plot(results))
    for name, arms in curves(ledger).items():
        if svg := curve_plot(results, arms):
            (plots / f"{name}.svg").write_text(svg)
    (out / "ledger.md").write_text(page(results, plots))


def page(results: Results, plots: pathlib.Path) -> str:
    done = [line for line in results.lines.values() if "error" not in line]
    commits = sorted({line["commit"][:12] for line in done})
    text = ["# The ledger", "",
            "Written by `python benchmarks/ledger.py report`; do not edit. Claims and the rule that decides them stand in",
            "benchmarks/hypotheses/. An effect is a mean over seeds, paired, with its 95 % interval. EM is in shares of 1,",
            "on unseen worlds of experiments/hard_world.py with BM25, greedy. All runs share one world, one base and one",
            "simulator of each size: the errors are those of seeds, and do not cover another world, base or simulator. All",
            "seeds are asked the same 180 questions, so intervals leave out the questions' error, too. Some 30 comparisons",
            "have 95 % each, without a correction: one or two may be wrong by chance. \"Supported\" says that the interval",
            "lies on the right side of 0 and reaches the smallest effect that matters, not that it lies beyond it.", "",
            *_second_looks(results.ledger),
            f"{len(done)} runs: {time_of(results.lines.values())}. With runs that were replaced since, "
            f"{len(results.stored)}:", f"{time_of(results.stored)}. Models that were made for a run are in its time.",
            f"Commits: {', '.join(commits) or 'none'}.", "",
            "| | claim | verdict | seeds | seeds that would decide |", "| --- | --- | --- | --- | --- |"]
    text += [summary_row(results, hypothesis) for hypothesis in _by_id(results.ledger)]
    text += ["", *decided(results), "", "![effects](ledger/effects.svg)", "", "## What the experiments do by default", "",
             *defaults_table(results), ""]
    for hypothesis in _by_id(results.ledger):
        text += [*section(results, hypothesis), ""]
    text += ["## The arms", "", "Means over seeds, and the standard error of that mean. Lost: the best document is lost in",
             "30 % of searches. Wrong: it tells another object in 30 %. Fall: the best EM of an evaluation in training,",
             "minus the last one. Step 10: EM of the evaluation after 10 steps, of 60 questions.", "",
             *arms_table(results), ""]
    text += [f"![{path.stem}](ledger/{path.name})" for path in sorted(plots.glob("curves_*.svg"))]
    text += ["", "## Signs before the score falls", "", *signs(results.lines.values()), ""]
    failed = [line for line in results.lines.values() if "error" in line]
    if results.outdated:
        text += ["## Runs that do not count", "", "Their settings are not those of their arm any more.", "",
                 *(f"- {arm}, seed {seed}: {', '.join(names)}" for (arm, _, seed), names in results.outdated.items()), ""]
    if failed:
        text += ["## Runs that failed", "", *(f"- {line['arm']}, seed {line['seed']}: `{_last(line['error'])}`"
                                              for line in failed), ""]
    return "\n".join(text)


def time_of(lines: Iterable[Mapping]) -> str:
    """Hours of wall time and, of the lines that have it, of CPU time."""
    lines = list(lines)
    cpu = [line["cpu_seconds"] for line in lines if "cpu_seconds" in line]
    known = f"{sum(cpu) / 3600:.1f} hours of CPU time in the {len(cpu)} that have it" if cpu else "CPU time not known"
    return f"{sum(line['seconds'] for line in lines) / 3600:.1f} hours of wall time, {known}"


def _second_looks(ledger):
    looked = [f"{h.id} (with {h.first_seeds})" for h in _by_id(ledger) if h.first_seeds]
    if not looked:
        return []
    return [f"Undecided at first, and given more seeds: {', '.join(looked)}.", "All their seeds decide now. By this second "
            "look no effect passes for a supported one in some 4 % of claims instead of 2.5.", ""]


def summary_row(results: Results, hypothesis: Hypothesis) -> str:
    word, seeds, needed = judged(results, hypothesis)
    needed = "" if word != verdict.UNDECIDED else "more than a thousand" if needed is None else str(needed)
    word, needed = word if seeds else NOT_RUN, needed if seeds > 1 else ""
    return f"| {hypothesis.id} | {hypothesis.title} | {word} | {seeds} | {needed} |"


def decided(results: Results) -> list[str]:
    """How many of the claims are decided, and of which of these that says little. Parts as C10b are not counted."""
    lines, count, claims = [], 0, [h for h in _by_id(results.ledger) if re.fullmatch(r"C\d+", h.id)]
    for hypothesis in claims:
        word, *_ = judged(results, hypothesis)
        if word not in (verdict.SUPPORTED, verdict.REFUTED):
            continue
        count += 1
        tests = (*hypothesis.comparisons, *hypothesis.correlations)
        parts = [_word(test, results.effect(test, hypothesis.seeds), hypothesis) for test in tests]
        if word == verdict.REFUTED and set(parts) != {word}:
            others = ", ".join(f"{parts.count(other)} {other}" for other in dict.fromkeys(parts) if other != word)
            lines.append(f"- {hypothesis.id}: refuted by {parts.count(word)} of {len(parts)} comparisons ({others})")
        if hypothesis.caveat:
            lines.append(f"- {hypothesis.id}: {hypothesis.caveat}")
    few = len({line.split(":")[0] for line in lines})
    head = f"{count} of {len(claims)} claims are decided" + (f", {few} of them by less than it seems:" if lines else ".")
    return [head, *[""] * bool(lines), *lines]


def defaults_table(results: Results) -> list[str]:
    """Each default, the experiments that have it, its claim, and whether it follows from the verdict."""
    lines = [_row(["default", "experiments", "claim", "verdict", "the default"]), _row(["---"] * 5)]
    claims, shipped = {hypothesis.id: hypothesis for hypothesis in results.ledger.hypotheses}, defaults.experiments()
    for default in results.ledger.defaults:
        having = [name for name, config in shipped.items() if default.holds_in(config)]
        word, seeds, _ = judged(results, claims[default.claim]) if default.claim else ("", 1, None)
        claim = f"{default.claim}: {claims[default.claim].title}" if default.claim else ""
        lines.append(_row([default.says, "all" if len(having) == len(shipped) else ", ".join(having), claim,
                           word if seeds else NOT_RUN, default.conclusion(word)]))
    return lines


def gates_table(results: Results, models: Sequence[str]) -> list[str]:
    """What the gates measured of tuned simulators, whether or not they stopped any."""
    from zsjax.tuning.simulator_gates import RIGHT

    lines = ["", _row(["simulator", "n", "gold in useful replies, 1/2/3 hops", "in noisy ones",
                       "in useful ones beside the point, above BM25 at most"]), _row(["---"] * 5)]
    for name in models:
        path = results.models / name / "gates.json" if results.models else None
        measured = json.loads(path.read_text()) if path is not None and path.exists() else []
        rows = [row for row in measured if row["gate"] == "simulator"]  # none while its gates are still measured
        if not rows:
            lines.append(_row([name, "", "not made", "", ""]))
            continue
        right = sorted((row for row in rows if row["kind"] == RIGHT), key=lambda row: row["hops"])
        useful, noisy = (" / ".join(f"{row[kind]:.2f}" for row in right) for kind in ("useful", "noisy"))
        leak = max(row["useful"] - row["engine"] for row in rows if row["kind"] != RIGHT)
        lines.append(_row([name, right[0]["n"], useful, noisy, f"{leak:+.2f}"]))
    return lines


def judged(results: Results, hypothesis: Hypothesis) -> tuple[str, int, int | None]:
    """(verdict, NOT_RUN or UNFINISHED; fewest seeds of a comparison; seeds that would decide all, or None)."""
    tests = (*hypothesis.comparisons, *hypothesis.correlations)
    effects = [results.effect(test, hypothesis.seeds) for test in tests]
    words = [_word(test, effect, hypothesis) for test, effect in zip(tests, effects, strict=True)]
    needed = [verdict.seeds_to_decide(test.says, effect, test.smallest)
              for test, effect, word in zip(tests, effects, words, strict=True) if word == verdict.UNDECIDED]
    seeds = min((0 if effect is None else effect.seeds for effect in effects), default=0)
    word = verdict.together(words)
    if word != verdict.REFUTED and {NOT_RUN, UNFINISHED} & set(words):
        word = UNFINISHED
    return word, seeds, None if None in needed or not needed else max(needed)


def _word(test, effect, hypothesis) -> str:
    """The verdict on one comparison. It waits for all planned seeds, as an early look favours chance."""
    if effect is None:
        return NOT_RUN
    planned = len(hypothesis.seeds) * (len(test.arms) if isinstance(test, Correlation) else 1)
    return verdict.decide(test.says, effect, test.smallest) if effect.n >= planned else UNFINISHED


def section(results: Results, hypothesis: Hypothesis) -> list[str]:
    dial = hypothesis.id.startswith("D")
    head = ["comparison", "says", "smallest that matters", "effect", "95 % interval", "n", "verdict",
            *["effect / SE"] * dial]
    lines = [f"## {hypothesis.id}: {hypothesis.title}", "", hypothesis.claim, f"Source: {hypothesis.source}.",
             *filter(None, [hypothesis.note]), "", _row(head), _row(["---"] * len(head))]
    for test in (*hypothesis.comparisons, *hypothesis.correlations):
        cells = [name_of(test), test.says, test.smallest]
        effect = results.effect(test, hypothesis.seeds)
        if effect is None:
            lines.append(_row([*cells, "", "", 0, NOT_RUN, *[""] * dial]))
            continue
        low, high = effect.interval()
        cells += [_with_error(effect), f"{low:+.3f} to {high:+.3f}" if math.isfinite(low) else "", effect.n,
                  _word(test, effect, hypothesis)]
        over = f"{effect.mean / effect.error:+.1f}" if effect.error > 0 else ""
        lines.append(_row([*cells, *[over] * dial]))
    return lines + (gates_table(results, hypothesis.models) if hypothesis.models else [])


def _row(cells: Sequence) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _with_error(effect) -> str:
    """mean ± error; "" for what is not defined, of one seed or without spread."""
    if not math.isfinite(effect.mean):
        return ""
    return f"{effect.mean:+.3f}" + (f" ± {effect.error:.3f}" if math.isfinite(effect.error) else "")


def name_of(test: Comparison | Correlation) -> str:
    if isinstance(test, Correlation):
        return f"correlation of {test.x} and {test.y}, both from the means of arm and seed"
    (arm, measure), (other, other_measure) = test.treatment, test.control
    return f"{arm} - {other}, {measure}" if measure == other_measure else f"{arm} {measure} - {other} {other_measure}"


def arms_table(results: Results) -> list[str]:
    lines = ["| arm | seeds | " + " | ".join(COLUMNS.values()) + " |", "|" + " --- |" * (len(COLUMNS) + 2)]
    for arm in results.ledger.arms:
        if runs := results.of(arm):
            cells = [cell(list(results.values(arm, measure).values())) for measure in COLUMNS]
            lines.append(f"| {arm} | {len(runs)} | " + " | ".join(cells) + " |")
    return lines


def cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    digits = 0 if abs(statistics.mean(values)) >= 100 else 2
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{error}"


def curves(ledger: Ledger) -> dict[str, list[str]]:
    """{plot: arms}: each claim's arms, those of equal sets once."""
    plots = {}
    for hypothesis in _by_id(ledger):
        if sorted(hypothesis.arms()) not in [sorted(arms) for arms in plots.values()]:
            plots[f"curves_{hypothesis.id.lower()}"] = hypothesis.arms()
    return plots


def curve_plot(results: Results, arms: Sequence[str], metric: str = "eval/em") -> str:
    series = {}
    for arm in arms:
        runs = [line["curves"].get(metric, []) for line in results.of(arm).values()]
        steps = [[value for value in column if value is not None] for column in zip(*runs, strict=False)]
        if points := [(step + 1, statistics.mean(values)) for step, values in enumerate(steps) if values]:
            series[arm] = points
    svg = charts.line_chart(series, low=0.0)
    legend = "".join(f'<text x="{charts.LEFT + 8}" y="{charts.TOP + 12 * (i + 1)}" style="fill:{charts.color_of(i)}">'
                     f"{name}</text>" for i, name in enumerate(series))
    return svg.replace(">", f">{STYLE}", 1).replace("</svg>", f"{legend}</svg>") if svg else ""


def effects_plot(results: Results) -> str:
    """Every comparison's effect over its smallest effect, with its interval: beyond 1 it matters."""
    rows = [(f"{hypothesis.id} {name_of(test)}", test, effect) for hypothesis in _by_id(results.ledger)
            for test in (*hypothesis.comparisons, *hypothesis.correlations)
            if (effect := results.effect(test, hypothesis.seeds)) is not None]
    height, left, width, reach = 18, 330, 640, 4.0

    def place(x):
        return left + (max(-reach, min(reach, x)) + reach) / (2 * reach) * (width - left - 10)

    out = [f'<svg viewBox="0 0 {width} {height * (len(rows) + 2)}" xmlns="http://www.w3.org/2000/svg">{STYLE}']
    for tick in (-1, 0, 1):
        x, bottom = round(place(tick), 1), height * (len(rows) + 1)
        out.append(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{bottom}"/>'
                   f'<text x="{x}" y="{bottom + 12}" text-anchor="middle">{tick}</text>')
    for row, (name, test, effect) in enumerate(rows):
        y, (low, high) = height * (row + 0.7), effect.interval()
        out.append(f'<text x="4" y="{y + 4:.0f}">{charts.escape(name)}</text>')
        if math.isfinite(low):
            ends = f'x1="{place(low / test.smallest):.1f}" x2="{place(high / test.smallest):.1f}"'
            out.append(f'<line {ends} y1="{y}" y2="{y}" stroke="#2563eb"/>')
        if math.isfinite(effect.mean):
            out.append(f'<circle class="dot" cx="{place(effect.mean / test.smallest):.1f}" cy="{y}" r="3" fill="#2563eb"/>')
    return "".join(out) + "</svg>\n"


def _by_id(ledger: Ledger) -> list[Hypothesis]:
    def place(hypothesis):
        kind, number, part = re.fullmatch(r"(.)(\d+)(.*)", hypothesis.id).groups()
        return kind, int(number), part

    return sorted(ledger.hypotheses, key=place)


def _last(error: str) -> str:
    """The last line of an error that says something."""
    return next((line for line in reversed(error.splitlines()) if line.strip()), "")[:160]
