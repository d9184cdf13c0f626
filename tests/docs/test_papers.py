"""The table of the reference's defects is complete, and each presented algorithm has its section."""

import re

from tests.docs.blocks import DOCS
from zsjax.rl.algorithms import PRESETS


def test_each_defect_has_a_test():
    rows = re.findall(r"^\| (B\d+) \|.*\| ([^|]*) \|$", (DOCS / "papers" / "defects.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [f"B{n}" for n in range(1, 33)]
    assert all("::test_" in tests for _, tests in rows)  # tests/docs/test_links.py finds them in their files


def test_each_algorithm_has_its_section():
    text = (DOCS / "papers" / "methods.md").read_text()
    named = set(re.findall(r'preset\("(\w+)"\)', text))
    assert named == set(PRESETS)
    assert text.count("arXiv ") >= 12
