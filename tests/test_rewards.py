"""Rewards: the cases in which ZeroSearch's own reward was wrong, and hand numbers."""

import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsjax.rewards import answer_kind, contains_match, exact_match, extract_answer, f1_score, normalize_answer

PROMPT = "Answer inside <answer> and </answer>, for example, <answer> Beijing </answer>. Question: who?"


@pytest.mark.parametrize("policy_text, golds, f1, exact, contains", [
    # No answer: the reference scored the prompt's example, "Beijing", or the word "and" of its feedback.
    ("<think> I do not know </think>", ["Beijing"], 0, 0, 0),
    ("<search> query </search>", ["Simon and Garfunkel"], 0, 0, 0),
    ("", ["Beijing"], 0, 0, 0),
    # An open tag is not an answer; a template with fewer than two answer tags crashed the reference on None.lower().
    ("<answer> Beijing", ["Beijing"], 0, 0, 0),
    ("Beijing </answer>", ["Beijing"], 0, 0, 0),
    ("<answer> and </answer>", ["Simon and Garfunkel"], 0.5, 0, 0),
    # Containment goes by whole words: as substrings, "no" is in "north dakota" and "2" in "1920".
    ("<answer> north dakota </answer>", ["no"], 0, 0, 0),
    ("<answer> 1920 </answer>", ["2"], 0, 0, 0),
    # A gold that normalises to nothing is contained in everything, and scored 1.
    ("<answer> anything </answer>", [""], 0, 0, 0),
    ("<answer> anything </answer>", ["the", "?!"], 0, 0, 0),
    ("<answer> anything </answer>", [], 0, 0, 0),
    ("<answer>  </answer>", ["Beijing"], 0, 0, 0),
    ("<answer> The . </answer>", ["the"], 0, 0, 0),
    # Long answers that hold the gold are contained, not exact.
    ("<answer> it is Beijing, China </answer>", ["Beijing"], 2 / 5, 0, 1),
    ("<answer> China Beijing </answer>", ["Beijing China"], 1, 0, 0),
    ("<answer>The Beijing!</answer>", ["Shanghai", "beijing"], 1, 1, 1),
    ("<answer> x </answer> <answer> Beijing </answer> <answer> open", ["Beijing"], 1, 1, 1),
])
def test_scores_of_an_episode(policy_text, golds, f1, exact, contains):
    answer = extract_answer(policy_text)
    for score, want in ((f1_score, f1), (exact_match, exact), (contains_match, contains)):
        got = score(answer, golds)
        assert type(got) is float and got == pytest.approx(want)


def test_extraction_takes_the_last_complete_pair():
    assert extract_answer(PROMPT + "<think> hm </think>") == "Beijing"  # why only the policy's tokens may be given
    assert extract_answer("<answer> a </answer><answer>\n b c \n</answer>") == "b c"
    assert extract_answer("<answer> a <answer> b </answer>") == "b"
    assert extract_answer("<answer> a </answer> </answer>") == "a"
    assert extract_answer("<answer></answer>") == ""
    assert extract_answer("<Answer> a </Answer>") is None
    assert extract_answer("</answer> a <answer>") is None


def test_normalisation_is_squads():
    assert normalize_answer(" The  Cat's,\tan A.B. (a) ") == "cats ab"
    assert normalize_answer("theory of an anthem") == "theory of anthem"
    assert normalize_answer("Ünal—42") == "ünal—42"


def test_f1_counts_words_as_often_as_they_stand():
    assert f1_score("to be or not to be", ["to be"]) == pytest.approx(2 * 2 / (6 + 2))
    assert f1_score("be be", ["to be"]) == pytest.approx(2 * 1 / 4)
    assert f1_score("Paris France", ["Berlin", "Paris", "France Paris X"]) == pytest.approx(2 * 2 / 5)


def test_a_single_string_is_one_gold():
    assert exact_match("b", "abc") == 0.0 and exact_match("abc", "abc") == 1.0


WORDS = st.lists(st.sampled_from(["the", "cat", "Cat.", "no", "north", "2", "1920", "?", "a", "an-x"]), max_size=6)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(WORDS, st.lists(WORDS, max_size=3))
def test_scores_equal_a_slow_version(prediction, golds):
    def words(text):  # SQuAD's own words, spelled out
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    prediction, golds = " ".join(prediction), [" ".join(g) for g in golds]
    f1 = exact = contains = 0.0
    for gold in golds:
        p, g = words(prediction), words(gold)
        if not p or not g:
            continue
        same = sum((Counter(p) & Counter(g)).values())
        if same:
            precision, recall = same / len(p), same / len(g)
            f1 = max(f1, 2 * precision * recall / (precision + recall))
        exact = max(exact, float(p == g))
        contains = max(contains, float(f" {' '.join(g)} " in f" {' '.join(p)} "))
    assert f1_score(prediction, golds) == pytest.approx(f1)
    assert exact_match(prediction, golds) == exact
    assert contains_match(prediction, golds) == contains
    assert exact <= contains and exact <= f1_score(prediction, golds)


@pytest.mark.parametrize("prediction, gold, equal", [
    ("Beyonce\u0301", "Beyonc\u00e9", 1), ("BEYONCE\u0301", "beyonc\u00c9", 1), ("\u212b", "\u00c5", 1),
    ("a \u2260 b", "a =\u0338 b", 1), ("10\u00b2", "102", 0), ("\ud83d", "x", 0)])
def test_scores_compare_in_nfc(prediction, gold, equal):
    assert exact_match(prediction, [gold]) == f1_score(gold, [prediction]) == contains_match(prediction, [gold]) == equal


@pytest.mark.parametrize("question, golds, kind", [
    ("Is Bath a city?", ["Yes"], "yes_no"), ("Is it Bath or no city?", ["no", "Bath"], "yes_no"),
    ("Which is older, Bath or Rome?", ["the Rome"], "named"), ("Who knows?", ["Nobody", "No one"], "open"),
    ("Which Romeo?", ("Rome",), "open"), ("Is it?", "yes", "yes_no"), ("", [], "open")])
def test_what_a_question_gives_away(question, golds, kind):
    assert answer_kind(question, golds) == kind
