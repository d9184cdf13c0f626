"""Actions from outside the package, named in a config: `<open>` shows a page by its title, `<both>` asks twice at once."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests.small_models import NUM_DOCUMENTS, PARAMS, POLICY, QUESTIONS, TOKENIZER, make_config
from zsjax.config import ConfigError
from zsjax.rewards.terms import well_formed
from zsjax.rollout import make_rollout, transcript
from zsjax.rollout.actions import ACTIONS, Action
from zsjax.rollout.outcomes import outcomes
from zsjax.sampling import ragged
from zsjax.search import Document, Engine

TEMPLATE = "Search with <search>, read a page with <open> title </open>, answer with <answer>. Question: {question}\n"


@dataclasses.dataclass
class Shelf(Engine):
    asked: list = dataclasses.field(default_factory=list)
    pages = (Document("Kara", "mother of Kara"), Document("Lonor", "rival of Lonor"))

    def search(self, queries, contexts, *, k):
        self.asked += [(context.action, query.strip()) for query, context in zip(queries, contexts, strict=True)]
        return [[Document("", f"voice of {query.strip()}")] for query in queries]


def look_up(engine, queries, contexts, *, k):
    return [[page for page in engine.pages if page.title == query.strip()] for query in queries]


OPEN = Action("open", asks=True, run=look_up)
BOTH = Action("both", asks=True, queries=2)
NOTE = Action("note")


def play(engine, actions, turns, prompt="tiny_world", **rollout):
    """What is played by a policy that writes turns[i] in turn i."""
    script = jnp.array(ragged.pad([TOKENIZER.encode(text) for text in turns], 48)[0])

    def sampler(logits, state, key, temperature):
        return script[state.turn, jnp.minimum(state.length - state.turn_start, 47)], -jnp.ones(len(logits))

    config = make_config(actions=("search", "answer", *(f"{__name__}:{name}" for name in actions)), **dict(
        max_turns=len(turns) - 1, max_tokens=240, max_prompt_tokens=80) | rollout)
    config = dataclasses.replace(config, prompts=dataclasses.replace(config.prompts, policy=prompt))
    rollout = make_rollout(POLICY, engine, TOKENIZER, config, sampler=sampler)
    played = jax.device_get(rollout.play(PARAMS, QUESTIONS[:1], key=jax.random.key(1)))
    (record,) = transcript.records(played.episodes, QUESTIONS, TOKENIZER)
    return played, record, [said["text"] for said in record["segments"] if said["role"] == "document"]


def test_an_engine_on_the_host(tmp_path):
    (tmp_path / "prompt.txt").write_text(TEMPLATE)
    shelf = Shelf()
    _, record, shown = play(shelf, ("OPEN", "BOTH"), prompt=str(tmp_path / "prompt.txt"), turns=(
        "<search> Kara; Lonor </search>", "<open> Lonor </open>", "<both> Kara; Lonor; Lonor </both>", "<both> ; </both>",
        "<answer> b </answer>"))
    assert shown == ["* voice of Kara; Lonor\n", "* rival of Lonor\n", "* voice of Kara\n* voice of Lonor\n"]
    assert "<open> title </open>" in record["segments"][0]["text"] and record["answer"] == "b"
    assert record["queries"] == ["Kara; Lonor", "Lonor", "Kara; Lonor; Lonor"] and record["num_searches"] == 3
    assert record["search_status"] == ["short", "short", "short", "invalid_action"]
    assert shelf.asked == [("search", "Kara; Lonor"), ("both", "Kara"), ("both", "Lonor")]


def test_each_of_several_queries_has_the_length_of_a_query():
    shelf, names = Shelf(), "Kara Lonor " * 8
    play(shelf, ("BOTH",), (f"<both> {names}; Lonor Kara </both>", "<answer> b </answer>"), max_turn_tokens=48)
    limit = make_config().search.max_query_tokens
    assert [query for _, query in shelf.asked] == [TOKENIZER.decode(TOKENIZER.encode_text(f" {names}")[:limit]).strip(),
                                                   "Lonor Kara"]


def test_a_note_is_written_in_any_generation_within_its_budget():
    note, answer = "<note> Kara </note>", "<answer> b </answer>"
    for turns in (["<search> Kara </search>", note + answer], [note + note + answer]):
        _, record, _ = play(Shelf(), ("NOTE",), turns, max_turn_tokens=48)
        assert (record["status"], record["answer"]) == ("answered", "b")
    budget = len(TOKENIZER.encode(note))
    for turns, status in (([note + answer, answer], "answered"), ([note + answer], "out_of_turns")):
        played, record, _ = play(Shelf(), ("NOTE",), turns, max_turn_tokens=budget)
        generation = transcript.generations(played.episodes, 0)[0]
        assert len(generation) == budget and record["status"] == status


def test_the_simulator_in_the_compiled_program(simulator):
    played, record, (two, one) = play(simulator, ("BOTH",), (
        "<both> Kara; Lonor </both>", "<search> Lonor </search>", "<answer> b </answer>"))
    assert record["search_status"] == ["ok", "ok"] and two.endswith(one)
    assert (two.count("\n"), one.count("\n")) == (2 * NUM_DOCUMENTS, NUM_DOCUMENTS)
    assert (played.work.requests, played.work.simulated) == (3, 2)  # the same query is one request, whatever asks it
    assert well_formed(*outcomes(played.episodes, QUESTIONS[:1], TOKENIZER, actions=(*ACTIONS, BOTH))) == 1


def test_a_config_names_it(checked):
    assert checked({"rollout": {"actions": ["search", "answer", f"{__name__}:OPEN"]}}).rollout.actions[2].endswith(":OPEN")
    with pytest.raises(ConfigError, match=r"rollout\.actions.*no_such"):
        checked({"rollout": {"actions": ["search", "answer", f"{__name__}:no_such"]}})
