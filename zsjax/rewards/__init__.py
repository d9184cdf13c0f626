"""Rewards from text: what the policy answered, and how right it is. Plain Python on the host.

    answer = extract_answer(policy_text)            # None if there is none
    reward = f1_score(answer, question.golden_answers)

`policy_text` must hold the policy's tokens only (role POLICY). A prompt may show `<answer> Beijing </answer>` as an
example, and a document may contain the tag: given the whole row, extraction takes them for answers, as ZeroSearch's
reward did. Exact match, containment and F1 are three scores and are reported as three.
"""

import collections
import re
import string
import unicodedata
from collections.abc import Sequence

from zsjax.types import ANSWER_TAGS

# What a question gives away of its answer, see `answer_kind`. "open" answers are what search and reading are for.
ANSWER_KINDS = ("open", "named", "yes_no")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_OPEN, _CLOSE = map(re.escape, ANSWER_TAGS)
_ANSWER = re.compile(f"{_OPEN}((?:(?!{_OPEN}|{_CLOSE}).)*){_CLOSE}", re.DOTALL)


def normalize_answer(text: str) -> str:
    """Lower case, in NFC, without ASCII punctuation, articles (a, an, the) and superfluous white space.

    SQuAD's `normalize_answer` (Rajpurkar et al. 2016, evaluate-v1.1.py), in its order. NFC makes a letter with its accent
    apart equal to the one letter that is the same text (a model's tokenizer may write either). It is not NFKC, under which
    10² would equal 102.
    """
    text = unicodedata.normalize("NFC", text.lower()).translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def extract_answer(text: str) -> str | None:
    """The inside of the last complete `<answer>...</answer>`, stripped; None if there is none.

    A pair is complete if no other answer tag stands in it: of `<answer> a <answer> b </answer>` the inside is "b".
    """
    inside = None
    for match in _ANSWER.finditer(text):
        inside = match.group(1).strip()
    return inside


def _best(score, prediction: str | None, golds: Sequence[str]) -> float:
    """The maximum over golds of score(prediction words, gold words); 0 where either side has no words."""
    golds = [golds] if isinstance(golds, str) else golds  # else each letter would be a gold
    words = normalize_answer(prediction or "").split()
    pairs = [(words, normalize_answer(gold).split()) for gold in golds]
    return max((float(score(*pair)) for pair in pairs if all(pair)), default=0.0)


def _f1(words, gold):
    overlap = (collections.Counter(words) & collections.Counter(gold)).total()
    return 2 * overlap / (len(words) + len(gold))


def f1_score(prediction: str | None, golds: Sequence[str]) -> float:
    """2 * overlap / (words of the prediction + words of the gold), of multisets of normalised words.

    The reward of ZeroSearch (arXiv 2505.04588, section 3.5); SQuAD's F1.

    Args:
      prediction: the extracted answer, or None.
      golds: every answer that counts as right; the best one counts.

    Returns:
      0.0 to 1.0; 0.0 for a prediction that is None or without words, for no golds and for golds without words.
    """
    return _best(_f1, prediction, golds)


def exact_match(prediction: str | None, golds: Sequence[str]) -> float:
    """1.0 if the prediction equals a gold after `normalize_answer`, else 0.0; see `f1_score` for the arguments."""
    return _best(lambda words, gold: words == gold, prediction, golds)


def contains_match(prediction: str | None, golds: Sequence[str]) -> float:
    """1.0 if a gold stands in the prediction as whole consecutive words, both normalised, else 0.0.

    "no" is not in "north dakota", nor "2" in "1920". See `f1_score` for the arguments.
    """

    def contains(words, gold):
        return any(words[i:i + len(gold)] == gold for i in range(len(words) - len(gold) + 1))

    return _best(contains, prediction, golds)


def answer_kind(question: str, golds: Sequence[str]) -> str:
    """What a question gives away: "yes_no": a gold answer is yes or no; "named": the question names a gold answer; "open".

    A policy that says yes to every question that calls for it, or picks a name of the question, earns without reading.
    """
    golds = [golds] if isinstance(golds, str) else golds
    if any(normalize_answer(gold) in ("yes", "no") for gold in golds):
        return "yes_no"
    return "named" if contains_match(question, golds) else "open"
