"""Episodes to imitate: searched and filtered as told, in the tokens of a rollout, read back whole."""

import collections
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax import types
from zsjax.config import resolve
from zsjax.data import load_tokenizer
from zsjax.evaluate import reach
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.rollout import make_rollout
from zsjax.rollout.actions import ANSWER, SEARCH, tags
from zsjax.sampling.tags import TagAutomaton
from zsjax.search import BM25, Document
from zsjax.tuning import demonstrations as d
from zsjax.types import Question

DOCUMENTS = [Document("Emma", "Emma is a novel by Jane Austen about a matchmaker."),
             Document("Jane Austen", "Jane Austen was born in Steventon, where she wrote."),
             Document("Bath", "Bath is a city with hot springs."),
             Document("Novel", "A novel about a country or about an author is a long work of prose.")]
ONE_HOP = Question("q1", "Which city has hot springs?", ("Rome", "Bath"))
TWO_HOPS = Question("q2", "Where was the author of the novel Emma born?", ("Steventon",),
                    {"supporting_titles": ["Emma", "Jane Austen"]})
UNKNOWN = Question("q3", "Where was the author of the novel Emma born?", ("Steventon",),
                   {"supporting_titles": ["Mansfield"]})


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("asset:real/tokenizer")


def make(tokenizer, **changes):
    tree = {"tokenizer": "asset:real/tokenizer", "prompts": {"policy": "plain"},
            "search": {"num_documents": 1, "max_document_tokens": 40, "max_query_tokens": 32},
            "warm_start": {}, "rollout": {"max_turns": 2, "max_turn_tokens": 48, "max_tokens": 256, "max_prompt_tokens": 64}}
    for name, value in changes.items():
        room, field = name.split("__")
        tree[room][field] = value
    return d.Shown(resolve(tree, check=False), tokenizer)


@pytest.fixture(scope="module")
def engine():
    return BM25.from_documents(DOCUMENTS)


def test_a_search_for_each_hop_until_the_answer_is_shown(tokenizer, engine):
    made = d.make_demonstrations([UNKNOWN, TWO_HOPS, ONE_HOP], engine, make(tokenizer))
    assert [episode.question.id for episode in made] == ["q2", "q1"]
    assert [turn.query for turn in made[0].turns] == [TWO_HOPS.question, "Jane Austen"]
    assert [[document.title for document in turn.documents] for turn in made[0].turns] == [["Emma"], ["Jane Austen"]]
    assert made[0].answer == "Steventon"
    assert len(made[1].turns) == 1 and made[1].answer == "Bath"  # the gold answer that is shown, not the first


def test_every_hop_is_searched_also_behind_a_shown_answer(tokenizer, engine):
    titles = {"supporting_titles": ["Emma", "Bath"]}
    comparison = Question("c", "Which has a matchmaker, the novel Emma or Bath?", ("Emma",), titles)
    one_hop = Question("n", "Which novel is about a matchmaker by Jane Austen?", ("Emma",),
                       {"supporting_titles": ["Jane Austen", "Emma"]})  # Emma is the answer, so one page is its only hop
    answer = Question("a", "What has a matchmaker in it by Austen?", ("Novel",), {"supporting_titles": ["Novel"]})
    asked = {}
    for every_hop in (False, True):
        shown = make(tokenizer, warm_start__every_hop=every_hop)
        made = d.make_demonstrations([comparison, one_hop, answer, ONE_HOP, TWO_HOPS], engine, shown)
        asked[every_hop] = [[turn.query for turn in episode.turns][1:] for episode in made]
        assert [episode.answer for episode in made] == ["Emma", "Emma", "Novel", "Bath", "Steventon"]
    assert asked == {False: [[], [], [], [], ["Jane Austen"]],
                     True: [["Bath"], [], [], [], ["Jane Austen"]]}


def test_a_shortened_episode_keeps_what_it_needs_next(tokenizer, engine):
    shown = make(tokenizer, search__num_documents=3)
    bath, novel, austen, emma = (next(x for x in DOCUMENTS if x.title == title)
                                 for title in ("Bath", "Novel", "Jane Austen", "Emma"))

    def titles(documents, limit):
        turns = [d.Turn(query, found) for query, found in documents]
        short = d.shorten(d.Demonstration(TWO_HOPS, tuple(turns), "Steventon"), shown, limit)
        return short and [[document.title for document in turn.documents] for turn in short.turns]

    one = [(TWO_HOPS.question, (bath, novel, austen))]
    assert titles(one, 3) == [["Bath", "Novel", "Jane Austen"]]
    assert titles(one, 2) == [["Bath", "Jane Austen"]] and titles(one, 1) == [["Jane Austen"]]
    two = [(TWO_HOPS.question, (bath, emma, novel)), ("Jane Austen", (novel, austen))]
    assert titles(two, 2) == [["Bath", "Emma"], ["Novel", "Jane Austen"]] and titles(two, 1) == [["Emma"], ["Jane Austen"]]
    assert titles([(TWO_HOPS.question, (bath, novel))], 2) is None


def test_what_an_episode_shows_does_not_tell_whether_to_search_again(tokenizer):
    """The number of documents told it once: two of a single search, one of each of two."""
    shown, places = make(tokenizer, search__num_documents=3), range(3)
    needed = {"Emma": "Emma is a novel.", "Steventon": "She was born in Steventon."}

    def found(text, place):
        return tuple(Document("Page", needed[text] if place == each else f"Nothing of it, {each}.") for each in places)

    def shortened(*turns):
        asked = ("Where?", *(text for text, _ in turns[:-1]))
        made = d.Demonstration(TWO_HOPS, tuple(d.Turn(q, found(*turn)) for q, turn in zip(asked, turns, strict=True)),
                               "Steventon")
        return d.shorten(made, shown, 2).turns

    def place(turn, text):
        return (len(turn.documents), [needed[text] in document.text for document in turn.documents].index(True))

    one = collections.Counter(place(*shortened(("Steventon", i)), "Steventon") for i in places)
    two = [shortened(("Emma", i), ("Steventon", j)) for i in places for j in places]
    for turn, text in ((0, "Emma"), (1, "Steventon")):
        assert collections.Counter(place(turns[turn], text) for turns in two) == {key: 3 * n for key, n in one.items()}
    assert one == {(2, 0): 1, (2, 1): 2}  # the engine's order


def test_a_document_s_number_is_no_answer(tokenizer):
    question = Question("n", "How many cats?", ("1",))
    for text, count in (("No number here.", 0), ("There is 1 cat.", 1)):
        made = d.make_demonstrations([question], BM25.from_documents([Document("Cats", text)]), make(tokenizer))
        assert len(made) == count
        assert reach(f"Doc 1: Cats. {text}\n", question.golden_answers) == count


def test_an_answer_that_is_cut_off_is_not_shown(tokenizer, engine):
    cut = make(tokenizer, search__max_document_tokens=8)
    assert not d.make_demonstrations([TWO_HOPS], engine, cut)
    assert not d.make_demonstrations([TWO_HOPS], engine, make(tokenizer, rollout__max_turns=1))


def test_an_episode_in_tokens_is_the_one_that_a_rollout_plays(tokenizer, engine):
    """The rollout is made to say what the episode says: everything it inserts must be what the episode holds."""
    shown = make(tokenizer)
    (episode,) = d.make_demonstrations([TWO_HOPS], engine, shown)
    tokens, roles = d.encode([episode], shown, 256)
    said = jnp.asarray(tokens[0])

    def sampler(logits, state, key, temperature):
        return said[state.length], jnp.zeros(len(logits))

    model = DecoderConfig(vocab_size=tokenizer.vocab_size, embed_dim=8, num_layers=1, num_heads=1, num_kv_heads=1,
                          head_dim=8, mlp_dim=8)
    rollout = make_rollout(model, engine, tokenizer, shown.config, sampler=sampler)
    played = jax.device_get(rollout(init_params(model, jax.random.key(0)), [TWO_HOPS], key=jax.random.key(0)))
    assert played.status[0] == types.ANSWERED and played.num_searches[0] == 2
    np.testing.assert_array_equal(played.tokens[0], tokens[0])
    np.testing.assert_array_equal(played.roles[0], roles[0])


def test_the_last_token_of_an_action_completes_its_tag(tokenizer, engine):
    (episode,) = d.make_demonstrations([TWO_HOPS], engine, make(tokenizer))
    automaton = TagAutomaton.from_tokenizer(tokenizer, tags())
    ends = [tags()[int(automaton.events(jnp.array([ids]))[0, -1]) - 1] for ids in make(tokenizer).actions(episode)]
    assert ends == [SEARCH.close, SEARCH.close, ANSWER.close]


@pytest.mark.parametrize("changes", [{"rollout__max_tokens": 60}, {"rollout__max_prompt_tokens": 4},
                                     {"rollout__max_turn_tokens": 8}, {"rollout__max_turns": 1},
                                     {"search__max_query_tokens": 4}])
def test_an_episode_without_room_is_left_out(tokenizer, engine, changes):
    (episode,) = d.make_demonstrations([TWO_HOPS], engine, make(tokenizer))
    assert len(d.encode([episode], make(tokenizer), 256)[0]) == 1
    assert len(d.encode([episode], make(tokenizer, **changes), 256)[0]) == 0
    assert len(d.encode([episode], make(tokenizer), 60)[0]) == 0


def test_files_come_back_whole_and_bad_lines_are_named(tokenizer, engine, tmp_path):
    made, path = d.make_demonstrations([TWO_HOPS, ONE_HOP], engine, make(tokenizer)), tmp_path / "episodes.jsonl"
    d.write_demonstrations(path, made)

    def plain(episodes):
        return [(e.question, e.answer, [(t.query, [(x.title, x.text) for x in t.documents]) for t in e.turns])
                for e in episodes]

    assert plain(d.read_demonstrations(path)) == [
        (Question(q.id, q.question, q.golden_answers, q.metadata), *rest) for q, *rest in plain(made)]
    good = json.loads(path.read_text().split("\n")[0])
    for change, message in (({"answer": None}, "line 1 is not an episode .None"),
                            ({"turns": [{"query": "x"}]}, "'documents'")):
        path.write_text(json.dumps(good | change) + "\n")
        with pytest.raises(ValueError, match=message):
            d.read_demonstrations(path)
    path.write_text("")
    with pytest.raises(ValueError, match="has no episode"):
        d.read_demonstrations(path)


def test_answers_that_the_question_names_are_few():
    def episode(number, question):
        return d.Demonstration(Question(f"q{number}", question, ("Bath",)), (), "Bath")

    made = [episode(i, "Rome or Bath?" if i % 2 else "Which city?") for i in range(40)]
    thinned = d.thin_named(made, 0.2)
    named = [each for each in thinned if "Bath" in each.question.question]
    assert (len(thinned), len(named)) == (25, 5) and thinned == [each for each in made if each in thinned]
    assert d.thin_named(made, 1.0) == made and not [e for e in d.thin_named(made, 0.0) if "Bath" in e.question.question]
    assert set(map(str, named)) <= set(map(str, d.thin_named(made, 0.4)))  # a larger share only adds


def test_a_title_with_a_section_is_of_its_page(tokenizer):
    """"Emma - Plot" was found, so the page "Emma" is not searched for again, whatever the corpus calls its sections."""
    engine = BM25.from_documents([Document("Emma - Plot", DOCUMENTS[0].text), DOCUMENTS[1], DOCUMENTS[2]])
    question = Question("s", "Who matches in the novel Emma, seen from Bath?", ("matchmaker",),
                        {"supporting_titles": ["Emma", "Bath -"]})
    (made,) = d.make_demonstrations([question], engine, make(tokenizer, warm_start__every_hop=True))
    assert [turn.query for turn in made.turns] == [question.question, "Bath"]
    assert [d.page_name(title) for title in ("Emma - Plot", "Emma -", "Emma-Plot", "A - B - C")] == [
        "Emma", "Emma", "Emma-Plot", "A"]


def test_a_bridge_is_a_named_page_that_shows_the_answer(tokenizer, engine):
    asked, shown, titles = Question("b", "Where was the author of the novel Emma born?", ("Steventon",)), make(tokenizer), []
    assert not d.make_demonstrations([asked], engine, shown, titles)
    titles = [document.title for document in DOCUMENTS]
    (made,) = d.make_demonstrations([asked], engine, shown, titles)
    assert [turn.query for turn in made.turns] == [asked.question, "Jane Austen"] and made.answer == "Steventon"
    # No bridge: a page that nothing shown names; a page that is the answer; a question of one hop; yes and no.
    assert not d.make_demonstrations([asked], engine, shown, ["Novel", "Bath"])
    springs = Question("g", "Which novel about a matchmaker has springs?", ("Jane Austen",))
    assert [len(e.turns) for e in d.make_demonstrations([springs], engine, shown, titles)] == [1]
    one_hop = Question("o", asked.question, ("Steventon",), {"supporting_titles": ["Bath"]})
    assert not d.make_demonstrations([one_hop], engine, shown, titles)
    assert not d.make_demonstrations([Question("y", "Is Bath a city?", ("yes",))], BM25.from_documents(
        [Document("Yes", "Is Bath a city? Yes, Bath is a city.")]), shown, titles)
    assert not d.make_demonstrations([asked], engine, make(tokenizer, rollout__max_turns=1), titles)
