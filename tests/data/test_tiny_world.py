"""The tiny world is what it says, its tokenizer spells words as single tokens, and its rows are what a rollout holds."""

import itertools
import re

import numpy as np
import pytest

from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.search import BM25
from zsjax.tiny_world import world as tiny_world
from zsjax.tiny_world.imitation import Behaviour, FactTable, episode_rows
from zsjax.tiny_world.rows import LINE, OBJECT, reading_rows, vocabulary

TRAIN, EVAL = tiny_world.worlds_of("tiny_world:train"), tiny_world.worlds_of("tiny_world:eval")
TOKENIZER = load_tokenizer(asset_path("asset:tiny_world/tokenizer"))
INFORMATION = re.compile(r"(\n<information>\n(?:\* .*\n)*</information>\n)")


def facts_of(documents):
    """{(relation, subject): object} as the documents' texts tell them."""
    pattern = re.compile(r"(\w+) of (\w+ \w+) is (\w+ \w+)\.")
    return {(m[1], m[2]): m[3] for m in (pattern.fullmatch(d.text) for d in documents)}


def test_a_world_is_a_function_of_its_seed_and_split():
    assert tiny_world.make_world(5) == tiny_world.make_world(5) != tiny_world.make_world(6)
    assert tiny_world.worlds_of("tiny_world:train", seed=1) != TRAIN
    with pytest.raises(ValueError, match="split='dev'"):
        tiny_world.make_world(0, "dev")
    with pytest.raises(ValueError, match="facts_per_entity=9"):
        tiny_world.make_world(0, facts_per_entity=9)
    with pytest.raises(ValueError, match="tiny_world:dev"):
        tiny_world.worlds_of("tiny_world:dev")


def test_evaluation_uses_other_names_and_worlds_share_no_entity():
    held_out = tiny_world.held_out_names()
    assert 0.09 < held_out.mean() < 0.11
    first, last = tiny_world.name_words()
    names = [name for world in TRAIN + EVAL for name in world.entities]
    assert len(set(names)) == len(names) == 40 * 11
    for world in TRAIN + EVAL:
        for name in world.entities:
            a, b = name.split()
            assert held_out[first.index(a), last.index(b)] == (world.split == "eval")


def test_questions_are_answered_by_their_right_queries():
    for worlds in (TRAIN, EVAL):
        facts = facts_of(tiny_world.documents(worlds))
        assert len(facts) == 160 * len(worlds)
        for question in tiny_world.questions(worlds):
            at, hops = question.metadata["path"][0], question.metadata["hops"]
            relations = re.findall(r"the (\w+)", question.question)
            assert question.question.endswith(f"of {at}?") and len(relations) == hops
            for query, relation in zip(question.metadata["queries"], reversed(relations), strict=True):
                assert query == f"{relation} of {at}"
                at = facts[relation, at]
            assert question.golden_answers[0] == at == question.metadata["path"][-1] != question.metadata["path"][0]


def test_an_alias_fits_one_entity_of_the_world_only():
    aliased = 0
    for world in EVAL:
        for question in world.questions:
            for alias in question.golden_answers[1:]:
                assert [name for name in world.entities if alias in name.split()] == [question.golden_answers[0]]
                aliased += 1
    assert aliased > 100


def test_names_share_words_and_any_even_prefix_is_balanced_over_hops():
    shared = np.mean([sum(other.split()[0] == name.split()[0] for other in world.entities) > 1
                      for world in TRAIN + EVAL for name in world.entities])
    assert shared > 0.3
    for count in (2, 16, 64, 400):
        assert sum(q.metadata["hops"] for q in tiny_world.questions(EVAL)[:count]) == 1.5 * count
    assert len({q.metadata["world"] for q in tiny_world.questions(EVAL)[:16]}) == 8
    ids = [q.id for worlds in (TRAIN, EVAL) for q in tiny_world.questions(worlds)]
    assert len(set(ids)) == len(ids)


def test_the_engine_finds_the_document_of_a_right_query_reworded_or_not():
    engine = BM25.from_documents(tiny_world.documents(EVAL))
    facts = facts_of(tiny_world.documents(EVAL))
    for reworded in (False, True):
        queries = [tiny_world.query_text(*fact, reworded=reworded) for fact in facts]
        found = engine.search(queries, None, k=3)
        hit = [f"{query.removeprefix('the ')} is {answer}." in [d.text for d in documents]
               for query, answer, documents in zip(queries, facts.values(), found, strict=True)]
        assert np.mean(hit) > 0.99


def test_every_word_is_one_token_and_tags_are_several():
    assert TOKENIZER.vocab_size < 1000 and TOKENIZER.pad_id == 0 and len(TOKENIZER.eos_ids) == 1
    vocab = vocabulary(TOKENIZER)
    ids = np.concatenate([vocab.first, vocab.last, vocab.relations])
    assert len(np.unique(ids)) == 408
    for tag in ("<search>", "</search>", "<answer>", "</answer>", "<think>", "</think>"):
        assert len(TOKENIZER.encode(tag)) >= 2
    text = "anything at all: Größe 12 ✓\n"
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    line = TOKENIZER.encode(tiny_world.DOCUMENT_LINE.format(text=EVAL[0].documents[0].text))
    assert len(line) == LINE


def test_the_carried_tokenizer_is_what_the_command_trains(tmp_path):
    tiny_world.train_tokenizer(tmp_path)
    carried = asset_path("asset:tiny_world/tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (carried / name).read_text()


def test_the_rollout_uses_the_texts_that_rows_are_made_of():
    template = PolicyTemplate.load("tiny_world")
    assert (template.prompt, template.hint) == (tiny_world.POLICY_PROMPT, tiny_world.HINT)
    assert template.information_open == tiny_world.DOCUMENTS_OPEN
    assert template.information_close == tiny_world.DOCUMENTS_CLOSE


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_reading_rows_ask_for_what_they_told(unknown):
    rows = reading_rows(np.random.default_rng(0), vocabulary(TOKENIZER), rows=20, max_tokens=16 * LINE, facts=(2, 8),
                        unknown=unknown)
    again = reading_rows(np.random.default_rng(0), vocabulary(TOKENIZER), rows=20, max_tokens=16 * LINE, facts=(2, 8),
                         unknown=unknown)
    for a, b in zip(rows, again, strict=True):
        np.testing.assert_array_equal(a, b)
    unknowns = 0
    for tokens, weights, asked in zip(*rows, strict=True):
        lines = TOKENIZER.decode(tokens[:(tokens != 0).sum()].tolist()).splitlines()
        n = int(asked.sum())
        told, later = lines[:n], lines[n:]
        assert len(set(told)) == n and set(later[:n]) <= set(told) if not unknown else True
        for line in later:
            if line.endswith("is unknown."):
                unknowns += 1
                assert not any(fact.startswith(line.removesuffix("unknown.")) for fact in told)
            else:
                assert line in lines[:n] or unknown
        assert not weights[tokens == 0].any()
        if not unknown:
            np.testing.assert_array_equal(weights[:len(lines) * LINE].reshape(-1, LINE)[n:, OBJECT], 1.0)
    assert (unknowns > 0) == (unknown > 0)


def test_reading_rows_keep_held_out_names_apart():
    vocab, held_out = vocabulary(TOKENIZER), tiny_world.held_out_names()
    first, last = ({int(t): i for i, t in enumerate(ids)} for ids in (vocab.first, vocab.last))
    for wanted in (False, True):
        tokens, _, _ = reading_rows(np.random.default_rng(1), vocab, rows=4, max_tokens=90, facts=5, held_out=wanted)
        pairs = [(first[a], last[b]) for row in tokens.tolist() for a, b in itertools.pairwise(row)
                 if a in first and b in last]
        assert len(pairs) == 4 * 10 * 2 and all(held_out[pair] == wanted for pair in pairs)


def test_episodes_are_spelled_as_a_rollout_would_hold_them():
    tokens, weights = episode_rows(np.random.default_rng(0), vocabulary(TOKENIZER), rows=200, max_tokens=192,
                                   behaviour=Behaviour())
    searches = []
    for row, weight in zip(tokens, weights, strict=True):
        row = row[:(row != 0).sum()].tolist()
        prompt, _, rest = TOKENIZER.decode(row).partition("?\n")
        ids = TOKENIZER.encode(tiny_world.POLICY_PROMPT.format(question=prompt + "?"))
        assert not weight[:len(ids)].any()
        for piece in INFORMATION.split(rest):
            start = len(ids)
            if INFORMATION.fullmatch(piece):
                ids += TOKENIZER.encode(tiny_world.DOCUMENTS_OPEN)
                for line in re.findall(r"\* .*\n", piece):
                    ids += TOKENIZER.encode(line)
                ids += TOKENIZER.encode(tiny_world.DOCUMENTS_CLOSE)
                assert not weight[start:len(ids)].any()
            else:
                ids += TOKENIZER.encode(piece)
        assert ids == row
        assert rest.endswith(" </answer>")
        searches.append(rest.count("<search>"))
    assert {0, 1, 2, 3} == set(searches)
    with pytest.raises(ValueError, match="does not fit max_tokens=40"):
        episode_rows(np.random.default_rng(0), vocabulary(TOKENIZER), rows=20, max_tokens=40, behaviour=Behaviour())


def test_guided_episodes_take_the_right_path_and_do_not_teach_to_search():
    behaviour = Behaviour(guided=1.0, lost=0.0)
    tokens, weights = episode_rows(np.random.default_rng(0), vocabulary(TOKENIZER), rows=40, max_tokens=192,
                                   behaviour=behaviour)
    for row, weight in zip(tokens, weights, strict=True):
        pieces = [TOKENIZER.decode([t]) for t in row[:(row != 0).sum()].tolist()]
        for i, piece in enumerate(pieces):
            if piece == "><":  # what comes next is the choice between search and answer
                assert pieces[i + 1] in ("search", "answer") and weight[i + 1] == 0
            if pieces[max(i - 2, 0):i] == ["search", ">"] and pieces[i - 3] == "><":  # which relation is asked
                assert weight[i] == 0 and weight[i + 2] == 1
        text = "".join(pieces)
        told = dict(re.findall(r"<think> (\w+ of \w+ \w+) is (\w+ \w+) </think>", text))
        at = re.search(r"of (\w+ \w+)\?", text)[1]
        for relation in reversed(re.findall(r"the (\w+)", text.partition("?")[0])):
            at = told[f"{relation} of {at}"]
        assert f"<answer> {at} </answer>" in text


def test_the_table_ranks_like_bm25():
    table = FactTable(np.random.default_rng(3))
    first, last = tiny_world.name_words()

    def name(e):
        return f"{first[table.names[e][0]]} {last[table.names[e][1]]}"

    documents = [tiny_world.Document(name(s), f"{tiny_world.RELATIONS[r]} of {name(s)} is {name(o)}.")
                 for s, r, o in zip(table.subject, table.relation, table.object, strict=True)]
    engine = BM25.from_documents(documents)
    overlap = []
    for entity in range(40):
        for relation in range(8):
            query = tiny_world.query_text(tiny_world.RELATIONS[relation], name(entity))
            theirs = {d.text for d in engine.search([query], None, k=3)[0]}
            overlap.append(len(theirs & {documents[i].text for i in table.search(entity, relation)}) / 3)
            fact = table.lookup(entity, relation)
            if fact >= 0:
                assert fact in table.search(entity, relation)
                lost = table.search(entity, relation, lose=True)
                assert table.object[fact] not in table.object[lost]
    assert np.mean(overlap) > 0.9
