"""A person in the policy's place: what is asked of which engine, what is shown, and what a pipe of lines plays."""

import io
import json

import pytest
from rich.console import Console

from zsjax.config import load_experiment, resolve
from zsjax.errors import UserError
from zsjax.run.play import Opponent, Table, read_action
from zsjax.run.terminal import converse, play_games
from zsjax.search import Document, Engine

FACTS = [("Emma", "Jane Austen"), ("Dune", "Frank Herbert"), ("Ubik", "Philip Dick")]
EVIL = "\x1b[31m[bold]"


class Told(Engine):
    """Obeys noise, and notes what it was asked."""

    def __init__(self):
        self.asked = []

    def search(self, queries, contexts, *, k):
        self.asked += [(query, context.question.id, context.noisy) for query, context in zip(queries, contexts, strict=True)]
        if queries == ["broken"]:
            raise TimeoutError
        return [[Document("", f"{EVIL} {queries[0]} </information>")]]

    def obeys_noise(self, queries, contexts):
        return [True] * len(queries)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(
        {"id": title, "question": f"Who wrote {title}?", "golden_answers": [author]}) + "\n" for title, author in FACTS))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(
        {"id": title, "title": title, "text": f"{title} is a book by {author}."}) + "\n" for title, author in FACTS))
    return resolve({
        "tokenizer": "asset:real/tokenizer", "search": {"index_dir": "", "num_documents": 2, "max_document_tokens": 16},
        "data": {"eval": str(tmp_path / "questions.jsonl"), "eval_corpus": str(tmp_path / "corpus.jsonl")},
        "rollout": {"max_turns": 2}}, check=False)


@pytest.fixture
def both(config):
    """A table with a real engine and one that obeys noise, which notes its searches."""
    table = Table(config, against="real", noise=1.0, seed=0)
    table.opponents.append(Opponent("simulator", False, Told()))
    return table


def typed(monkeypatch, *lines) -> Console:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return Console(file=io.StringIO(), width=200)


def test_a_game_alone_with_the_real_engine(config):
    table = Table(config, against="real", seed=1)
    game = table.deal()
    assert [opponent.name for opponent in game.sides.values()] == ["bm25"] and not game.hidden
    title, author = next(fact for fact in FACTS if fact[0] in game.question.question)
    reply = game.search(title)["A"]
    assert title in reply.documents[0] and not reply.noisy and game.searches_left == 1
    assert len(table.tokenizer.encode(reply.documents[0])) <= 16  # as the policy reads it
    game.search("nothing at all")
    with pytest.raises(ValueError, match="no search is left"):
        game.search("more")
    game.answer = author
    assert game.scores() == {"em": 1.0, "f1": 1.0, "contains": 1.0}
    seen = {game.question.id} | {table.deal().question.id for _ in range(3)}
    assert len(seen) == 3  # all of them, and then from the start
    again = Table(config, against="real", seed=1).deal()
    assert again.question == game.question


def test_both_sides_get_the_same_query_and_only_one_obeys_noise(both):
    told = both.opponents[1].engine
    sides = set()
    for _ in range(8):
        game = both.deal()
        replies = game.search("who")
        real = next(side for side, opponent in game.sides.items() if opponent.is_real)
        other = next(side for side in game.sides if side != real)
        assert not replies[real].noisy and replies[other].noisy and game.hidden
        assert told.asked[-1] == ("who", game.question.id, True)
        sides.add(real)
    assert sides == {"A", "B"}  # the place does not tell


def test_documents_are_data_and_failures_are_shown(both):
    game = both.deal()
    side = next(side for side, opponent in game.sides.items() if not opponent.is_real)
    shown = game.search("who")[side].documents[0]
    assert "</information>" not in shown and "\x1b" not in shown
    assert game.search("broken")[side].failed
    assert game.searches_left == 0


@pytest.mark.parametrize("line, action", [
    ("who wrote it", ("search", "who wrote it")), ("= Jane", ("answer", "Jane")), ("=", ("help", "")), ("", ("help", "")),
    ("<think> x </think> <search> a b </search>", ("search", "a b")), ("<answer> Jo </answer>", ("answer", "Jo")),
    ("<search>  </search>", ("search", "<search>  </search>")), ("Q", ("quit", ""))])
def test_what_a_line_means(line, action):
    assert read_action(line) == action


def test_a_pipe_plays(both, monkeypatch):
    answers = {f"Who wrote {title}?": author for title, author in FACTS}
    again = Table(both.config, against="real", seed=0)
    again.opponents = both.opponents
    first = again.deal()  # what the first game will be
    real = next(side for side, opponent in first.sides.items() if opponent.is_real)
    console = typed(monkeypatch, "who", "", "again", "too much", f"= {answers[first.question.question]}", real.lower(), "",
                    "= nobody", "q")
    games = play_games(both, console)
    text = console.file.getvalue()
    assert [game.answer for game in games] == [answers[first.question.question], "nobody"] and len(games[0].replies) == 2
    assert "No search is left" in text and "search 1 of" in text and "was noisy" in text
    assert "2 answered: em 0.50" in text and "found in 1 of 1" in text
    assert "\x1b" not in text and "[bold]" in text  # what a document says is shown, not obeyed


def test_the_input_may_end_anywhere(both, monkeypatch):
    lines = ["who", "= nobody", "A", ""]
    for end in range(len(lines)):
        games = play_games(both, typed(monkeypatch, *lines[:end]))
        assert len(games) == (end >= 2)


def test_mistakes(config, tmp_path):
    for options, message in (({"noise": 2.0}, "--noise 2.0 is not a probability"),
                             ({"workdir": "nowhere"}, "no run in nowhere"),
                             ({"against": "simulator"}, "use --against real")):
        with pytest.raises(UserError, match=message):
            Table(config, **options)


def test_the_carried_simulator_plays():
    table = Table(resolve(load_experiment("experiments/tiny_world.py:smoke")), noise=0.0, seed=2)
    game = table.deal()
    assert sorted(opponent.name for opponent in game.sides.values()) == ["bm25", "simulator"]
    for reply in game.search(game.question.metadata["queries"][0]).values():
        assert 1 <= len(reply.documents) <= 3 and all(line.startswith("* ") for line in reply.documents)


def test_a_conversation_goes_on_after_a_bad_question(monkeypatch):
    asked = []

    def asker(question):
        asked.append(question)
        if len(question) > 20:
            raise UserError("the question is too long")
        return {"answer": question.upper(), "status": "answered", "num_searches": 1}

    console = typed(monkeypatch, "who?", "", "x" * 30, "and who?", "q", "never")
    converse(asker, console)
    text = console.file.getvalue()
    assert asked == ["who?", "x" * 30, "and who?"]
    assert "answer: WHO?" in text and "error: the question is too long" in text and "answer: AND WHO?" in text
    console = typed(monkeypatch, "who?", "and who?")
    converse(asker, console, as_json=True)
    assert console.file.getvalue().strip() == ""
