"""The pages of the documents and their code blocks."""

import dataclasses
import importlib.util
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Pages that docs/generated.py makes are tested where it is.
WRITTEN = sorted(page for page in DOCS.rglob("*.md") if not page.read_text().startswith("<!-- Made by"))
PAGES = [*WRITTEN, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
_FENCE = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]*?) -->\n)?^```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<text>.*?)^```$",
                    re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block. title: of `title="name.py"`, the file that the block is. reason: why it is not run, or None."""

    page: pathlib.Path
    line: int
    language: str
    title: str
    text: str
    reason: str | None

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: pathlib.Path) -> list[Block]:
    text, found = page.read_text(), []
    for match in _FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match["rest"])
        found.append(Block(page, text.count("\n", 0, match.start("language")) + 1, match["language"],
                           title[1] if title else "", match["text"], match["reason"]))
    return found


def prose(page: pathlib.Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def generated():
    """docs/generated.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_generated", DOCS / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
