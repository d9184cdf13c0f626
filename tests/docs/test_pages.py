"""Pages that are made from the code are complete, and the site builds without a warning and without a network."""

import os
import re
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT, generated
from zsjax import launch
from zsjax.config.declare import leaves
from zsjax.config.fields import Config
from zsjax.monitor.catalog import METRICS

GENERATED = generated()


def test_every_field_has_its_row():
    page = GENERATED.config_page()
    assert all(page.count(f"\n| `{name}` |") == 1 for name in leaves(Config))
    assert "| `train.steps` | `200` | 1 or more, at most 1,000,000,000 (steps) | of the whole run | computes |" in page


def test_every_metric_is_described():
    page = GENERATED.metrics_page()
    assert all(f"\n| `{metric.name}` | {metric.unit} |" in page for metric in METRICS)
    assert re.search(r"\| `entropy` \| nats per token \|.*\| below 0.0001 \| Entropy \|", page)


def test_every_command_has_its_help():
    names, page = GENERATED.commands(), GENERATED.commands_page()
    assert {"run", "ask", "plan", "evaluate", "export"} <= set(names)
    for name in names:
        with pytest.raises(SystemExit) as stop:
            launch.parse_flags([name, "--help"])
        assert stop.value.code == 0 and f"\n## {name}\n" in page and f"zsjax.launch {name}" in page


def test_registries_are_listed():
    page = GENERATED.registries_page()
    for name in ("ppo_clip", "grpo", "zero_search", "no_answer", "bm25", "reinforce_plus_plus", "tree_search", "repetition"):
        assert f"\n| `{name}` |" in page, name


def test_pages_made_from_the_code_are_current():
    """In a process of its own: other tests register parts of their own."""
    done = subprocess.run([sys.executable, "docs/generated.py", "--check"], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == 0, done.stderr


def test_links_are_turned_for_the_site():
    def turned(link, source="experiments/README.md", page="experiments.md"):
        return GENERATED.with_site_links(link, source, page)

    assert turned("[a](ledger.md#c1)") == "[a](ledger.md#c1)"
    assert turned("[a](../benchmarks/RESULTS.md)") == "[a](benchmarks.md)"
    assert turned("[a](../docs/how_to/loss.md)") == "[a](how_to/loss.md)"
    assert turned("[origin](data/search_qa/ORIGIN.md)") == "origin (`experiments/data/search_qa/ORIGIN.md`)"
    assert turned("![plot](ledger/effects.svg)", "experiments/ledger.md", "ledger.md") == "![plot](ledger/effects.svg)"
    assert turned("[a](../../experiments/LOG.md#x)", "docs/how_to/loss.md", "how_to/loss.md") == "[a](../log.md#x)"
    for same in ("[a](https://x.org/y) [b](#c)", "```python\nMETHODS[name](setting)\n```\n"):
        assert turned(same) == same


def test_the_site_builds_offline_and_without_a_warning(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the site is not built: pip install -e '.[docs]'")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
                          cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-2000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        fetched = re.findall(r'(?:src|(?:stylesheet|preconnect|icon)" href)="(https?://[^"]+)', page.read_text())
        assert not fetched, (page, fetched)
    # Each public name has its place: mkdocstrings gives it an anchor.
    losses = (tmp_path / "site" / "reference" / "rl.html").read_text()
    assert 'id="zsjax.rl.losses.ppo_clip"' in losses and 'id="zsjax.rl.advantages.gae"' in losses
