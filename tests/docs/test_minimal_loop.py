"""docs/minimal_loop.py: short, without a config or a checkpoint, right at smoke length, and it learns."""

import ast
import importlib.util
import pathlib
import sys

import pytest

PATH = pathlib.Path(__file__).parents[2] / "docs" / "minimal_loop.py"


@pytest.fixture(scope="module")
def minimal_loop():
    spec = importlib.util.spec_from_file_location("minimal_loop", PATH)
    module = sys.modules["minimal_loop"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["minimal_loop"]


def test_it_is_one_short_file_over_the_pure_parts():
    source = PATH.read_text()
    assert len(source.splitlines()) <= 250
    rooms = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module}
    assert not {name for name in rooms if name.startswith(("zsjax.config", "zsjax.run", "zsjax.parallel", "zsjax.train"))}


def test_at_smoke_length_every_part_is_right(minimal_loop, monkeypatch):
    played, score = [], minimal_loop.score
    monkeypatch.setattr(minimal_loop, "score", lambda episodes: (played.append(episodes), score(episodes))[1])
    found = minimal_loop.main(steps=2, questions_per_step=2, group_size=4, show=lambda line: None)
    # Tokens in, tokens out: the update recomputes the log-probs that were recorded when the tokens were drawn.
    assert max(found["sampler_gap"]) < 1e-5 and len(found["reward"]) == 2 and len(found["unseen"]) == 2
    for episode in [episode for batch in played for episode in batch]:
        assert len(episode.tokens) == len(episode.roles) == len(episode.logprobs) <= minimal_loop.ROW
        assert all(bool(logprob) == (role == minimal_loop.POLICY)
                   for logprob, role in zip(episode.logprobs, episode.roles, strict=True) if logprob)
        assert episode.roles.count(minimal_loop.DOCUMENT) >= 3 * episode.searches
    assert any(episode.searches for batch in played for episode in batch)


@pytest.mark.slow
def test_it_learns(minimal_loop):
    """As `python docs/minimal_loop.py` runs it. Of 48 questions the standard error of exact match is at most 0.07."""
    found = minimal_loop.main(show=lambda line: None)
    assert found["unseen"][0] < 0.4 and found["unseen"][1] > 0.8
    assert sum(found["reward"][-3:]) / 3 > found["reward"][0] + 0.2
