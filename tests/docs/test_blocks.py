"""Every code block of the documents runs, is checked against the command line, or says why it does not."""

import importlib
import json
import re
import shlex
import sys

import pytest

from tests.docs.blocks import PAGES, ROOT, blocks
from zsjax import launch
from zsjax.config import load_experiment
from zsjax.config.declare import leaves
from zsjax.config.fields import Config

BLOCKS = [block for page in PAGES for block in blocks(page)]
WITH_PYTHON = [page for page in PAGES if any(b.language == "python" and b.reason is None for b in blocks(page))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, in one namespace; one with a title is a file that they import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    names, files = {"__name__": "docs_page"}, []
    try:
        for block in blocks(page):
            if block.language != "python" or block.reason is not None:
                continue
            if block.title:
                (tmp_path / block.title).write_text(block.text)
                files.append(block.title.removesuffix(".py"))
                importlib.invalidate_caches()
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    finally:
        for name in files:
            sys.modules.pop(name, None)


def commands(block) -> list[str]:
    """The lines of a shell block, continued ones joined, without comments."""
    lines = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in block.text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash" and b.reason is None], ids=str)
def test_shell_is_understood(block):
    for command in commands(block):
        words = shlex.split(command)
        while words and "=" in words[0] and not words[0].startswith("-"):
            words = words[1:]  # variables of the environment
        if words[:3] == ["python", "-m", "zsjax.launch"] or words[:1] == ["zsjax"]:
            check_launch(words[1:] if words[0] == "zsjax" else words[3:])
        else:
            script = next((word for word in words[:4] if word.endswith((".sh", ".py"))), None)
            assert script and (ROOT / script).is_file(), f"{block}: {command}"


def check_launch(words):
    try:
        options, overrides = launch.parse_flags(words)
    except SystemExit as stop:  # --help
        assert stop.code == 0, words
        return
    unknown = [name for name in overrides if name not in leaves(Config)]
    assert not unknown, unknown
    if options.config is not None:
        load_experiment(str(ROOT / options.config))  # the file is there and knows its arguments


def test_json_is_json():
    for block in BLOCKS:
        if block.language == "json":
            for line in block.text.splitlines():
                json.loads(line)


def test_a_block_that_does_not_run_says_why():
    assert {block.language for block in BLOCKS} <= {"python", "bash", "json", "text"}
    assert all(block.reason is None or len(block.reason.split()) >= 3 for block in BLOCKS)
    assert sum(block.reason is not None for block in BLOCKS) <= 6
