"""Links and names in the documents lead somewhere."""

import importlib
import re

import pytest

from tests.docs.blocks import DOCS, PAGES, ROOT, WRITTEN, generated, prose
from zsjax.config.declare import leaves
from zsjax.config.fields import Config

LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)\s]+)\)")
COPIED = generated().COPIED
FIELDS = set(leaves(Config))
ids = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(text) -> set[str]:
    """What Python-Markdown's toc makes of the headings, and ids that are written out."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower() for title in headings]
    return {re.sub(r"[\s-]+", "-", title) for title in plain} | set(re.findall(r'id="([^"]+)"', text))


@ids
def test_links(page):
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        text = target.read_text() if target.suffix == ".md" else ""
        assert not anchor or anchor in anchors(text), f"{page}: {link}"


@ids
def test_files_and_names_exist(page):
    text = prose(page)
    for path in re.findall(r"`((?:zsjax|tests|docs|experiments|benchmarks|launch|notebooks)/[\w/.]+\.\w+)", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(zsjax(?:\.\w+)+)", text):
        assert found(name), name


def found(name) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            here = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if not hasattr(here, part):
                return False
            here = getattr(here, part)
        return True
    return False


@ids
def test_config_fields_exist(page):
    """`section.field` names a field of the config, or a group of them."""
    if page.name == "CHANGELOG.md":
        return
    sections = {name.partition(".")[0] for name in FIELDS if "." in name}
    groups = {name.rpartition(".")[0] for name in FIELDS} | FIELDS
    for name in re.findall(r"`(\w+(?:\.\w+)+)(?:=[^`]*)?`", prose(page)):
        if name.partition(".")[0] in sections and not name.endswith((".py", ".json", ".jsonl", ".md", ".html")):
            assert name in groups, f"{page}: {name}"


@ids
def test_tests_exist(page):
    """`tests/x.py` (`test_name`) or `tests/x.py::test_name`."""
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:`\s*\(`|::)(test_\w+)`", prose(page)):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}: {name}"


def test_the_navigation_lists_every_page():
    said = (ROOT / "mkdocs.yml").read_text()
    listed, apart = (re.findall(pattern, said, re.MULTILINE) for pattern in (r": ([\w/]+\.md)$", r"^  /([\w/]+\.md)$"))
    there = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")] + list(COPIED.values())
    there = [page for page in there if page not in apart]
    assert sorted(listed) == sorted(there)


def test_pages_are_short():
    """One question a page. The long ones are lists that are looked things up in."""
    for page in WRITTEN:
        assert len(page.read_text().splitlines()) <= 200, page
