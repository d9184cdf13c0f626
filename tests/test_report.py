import html.parser
import io
import json
import math
import re

from rich.console import Console

from zsjax import report
from zsjax.config import Config, to_json
from zsjax.report import charts, page

EVIL = "<script>alert(1)</script> & \"quotes\" </div></article>\x1b[31m"


class Page(html.parser.HTMLParser):
    """Tags, and the text with its escapes undone; fails where tags do not match."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def record(reward=1.0, **fields):
    return {"question": f"Who? {EVIL}", "golden_answers": [EVIL], "answer": "x", "status": "answered",
            "search_status": ["invalid_action", "ok", "failed", "short"], "noisy": [True, False, True, True],
            "num_searches": 2, "reward": reward,
            "segments": [{"role": "prompt", "text": "Q\n"}, {"role": "policy", "text": f"<think>{EVIL}"},
                         {"role": "template", "text": "\n<information>"}, {"role": "document", "text": f"clean {EVIL}"},
                         {"role": "policy", "text": "<search> y </search>"}, {"role": "document", "text": "dirty"}],
            **fields}


def fill(workdir):
    (workdir / "config.json").write_text(to_json(Config(name=EVIL)))
    lines = [{"stage": "train", "step": i, "reward": i / 50, "em": i / 60, "noise": 0.0, "kl": None, "grad_norm": "inf",
              EVIL: 3.0, "time/step": 1.0} for i in range(1, 1001)]
    lines += [{"stage": "tune_simulator", "step": 1, "loss": 2.0},
              {"stage": "evaluate", "step": 1, "baseline": "rag", "searches": 2}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "tr')
    (workdir / "evaluation.json").write_text(json.dumps(
        [{"name": EVIL, "hops": hops, "em": 0.512, "em_se": 0.03, "f1": 0.6, "searches": 1.25} for hops in (1, 2)]))
    (workdir / "gates.json").write_text(json.dumps([{"gate": "reading", "em": 0.97, "passed": True},
                                                    {"gate": EVIL, "kind": "right", "useful": 0.9}]))
    (workdir / "trajectories").mkdir()
    for step in (1, 11, 21):
        rows = [record(reward=i / 20, status=f"step {step}") for i in range(20)]
        (workdir / "trajectories" / f"train_{step:06d}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (workdir / "evaluation").mkdir()
    (workdir / "evaluation" / "after.jsonl").write_text(json.dumps(record(em=0.0)) + "\n")


def test_report_is_whole_safe_and_self_contained(tmp_path):
    fill(tmp_path)
    path = report.write(tmp_path)
    text = path.read_text()
    page = Page(text)
    assert path == tmp_path / "report.html" and len(text) < 2_000_000
    assert "script" not in page.tags and "img" not in page.tags and "link" not in page.tags
    assert not any(name in ("src", "href") or name.startswith("on") for _, found in page.attributes for name in found)
    assert "default-src 'none'" in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert EVIL.replace("\x1b", "␛") in page.text and "\x1b" not in text
    for shown in ("0.512", "± 0.030", "Score in training", "Noise", "Tuning of the simulator", "passed", "gold"):
        assert shown in page.text, shown
    assert page.tags.count("article") == 9  # four, four and the one that there is


def test_replies_of_a_simulator_stand_on_lines(tmp_path):
    replies = [{"gate": "replies after tuning", "question": f"Who {i}?", "useful": f"Doc 1: A{i}.\nDoc 2: B{i}.",
                "noisy": "one long line " * 5} for i in range(10)]
    shares = [{"gate": "held-out searches", "simulator": "after tuning", "useful": 0.8}]
    (tmp_path / "gates.json").write_text(json.dumps(shares + replies))
    text = report.write(tmp_path).read_text()
    assert text.count("<tr>\n<td>Who") == 10 and "replies after tuning</h3>" in text
    for i in range(10):
        assert f"<td class=lines>Doc 1: A{i}.\nDoc 2: B{i}.</td>" in text
    assert text.count("<td class=lines>one long line") == 10 and text.count("<td class=lines>") == 20
    assert re.search(r"td\.lines \{[^}]*white-space: pre-line[^}]*min-width", text)


def test_trajectories_show_both_ends(tmp_path):
    fill(tmp_path)
    chosen = report.choose_trajectories(tmp_path)
    names = [name for name, _ in chosen]
    assert set(names) == {"trajectories/train_000001", "trajectories/train_000021", "evaluation/after"}
    first = [row["reward"] for name, row in chosen if name == "trajectories/train_000001"]
    assert first == [0.95, 0.0, 0.9, 0.05]


def test_noisy_searches_are_marked(tmp_path):
    # Turn 0 was no search, turn 2 found nothing: the two document segments are turns 1 (clean) and 3 (noisy).
    assert report.noisy_segments(record()) == [False, False, False, False, False, True]
    fill(tmp_path)
    text = report.write(tmp_path).read_text()
    assert text.count("<span class='noisy'>noisy</span><span class='seg document dirty'") == text.count("<article ")
    assert "<span class='seg policy' title='policy'>&lt;search&gt; y &lt;/search&gt;</span>" in text


def test_nothing_must_exist(tmp_path):
    page = Page(report.write(tmp_path).read_text())
    assert tmp_path.name in page.text and "svg" not in page.tags


def test_chart():
    svg = charts.line_chart({"a": [(1, 0.0), (2, math.nan), (3, 1.0)], "<b>": [(1, 2.0)]}, low=0)
    assert "&lt;b&gt;" in svg and "<b>" not in svg and svg.count("<circle") == 3
    assert charts.line_chart({"a": [(1, math.nan)]}) == ""
    assert charts.line_chart({"a": [(1, 5.0), (2, 5.0)]}).count("<text") > 2  # a constant has an axis, too
    assert ">-" not in charts.line_chart({"a": [(1, 0.0), (2, 0.0)]}, low=0)  # nor does it go below what cannot be
    for low, high in ((0, 1), (0, 0.6), (-3, 17), (1e-9, 2e-9), (0, 12345)):
        ticks = charts.ticks(low, high, 5)
        assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12 and 2 <= len(ticks) <= 9, (low, high, ticks)
    assert len(charts.line_chart({"a": [(i, i) for i in range(10_000)]})) < 60_000


def test_show_episode():
    out = io.StringIO()
    report.show_episode(record(), Console(file=out, width=200, force_terminal=True, color_system="standard"))
    text = out.getvalue()
    assert "[noisy]" in text and "alert(1)" in text and "answer: x" in text
    assert "␛[31m" in text  # the model's own escape sequence is shown, not obeyed


def test_terms_and_alarms_of_ones_own_have_their_curves(tmp_path):
    lines = [{"stage": "train", "step": step, "reward/mine": 0.5, "reward/f1": 1.0, "alarm/mine": 0} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (stage,) = page.contents(tmp_path)["stages"]
    assert [chart["title"] for chart in stage["charts"]] == ["Terms of the reward", "Alarms"] and not stage["others"]
    assert [name for _, name in stage["charts"][0]["legend"]] == ["mine", "f1"]
