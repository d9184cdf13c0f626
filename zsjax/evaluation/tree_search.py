"""Monte Carlo tree search over the turns of an episode, with the policy itself as the only guide."""

import collections
import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from zsjax import rewards, types
from zsjax.evaluate import scored_records
from zsjax.evaluation.baseline_setting import Setting, vote
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.sampling import ragged

EXPLORATION = 1.0  # weight of the bonus for what was seldom tried (UCT)


@dataclasses.dataclass
class Node:
    """A place in the tree: an episode up to the policy's next generation.

    Attributes:
      tokens, turns: the prefix, as `rollout` takes it.
      children: by the tokens of their prefixes.
      passed: numbers of the episodes that went through the node.
    """

    tokens: tuple[int, ...]
    turns: int
    children: dict = dataclasses.field(default_factory=dict)
    passed: list[int] = dataclasses.field(default_factory=list)


def tree_search(s: Setting) -> list[dict]:
    """Monte Carlo tree search, all questions in step: select a node by UCT, play an episode from it, enter the episode.

    No gold answer is known at inference. An episode's value is therefore the share of the question's episodes that gave
    its answer, computed anew at every selection. A node's children are the searches that its episodes made next. Playing
    from the node itself, which may open a new child, is one more arm.
    """
    template = PolicyTemplate.load(s.config.prompts.policy)
    rollout, n, rows = s.rollout(), s.config.evaluate.baseline_samples, s.config.evaluate.batch_rows
    roots = [Node(tuple(template.encode(s.tokenizer, q.question, chat=s.config.prompts.chat)), 0) for q in s.questions]
    played: list[list[dict]] = [[] for _ in s.questions]
    for iteration in range(n):
        paths = [select_path(root, agreement(records)) for root, records in zip(roots, played, strict=True)]
        for first in range(0, len(s.questions), rows):
            group = ragged.fill(range(len(s.questions))[first:first + rows], rows)
            questions, leaves = [s.questions[i] for i in group], [paths[i][-1] for i in group]
            episodes = jax.device_get(rollout(
                s.params, questions, key=jax.random.fold_in(s.key, iteration), group_ids=np.arange(first, first + rows),
                prefixes=[(leaf.tokens, leaf.turns) for leaf in leaves]))
            found = scored_records(episodes, questions, s.tokenizer)
            for row, i in enumerate(group[:len(s.questions) - first]):
                grow_path(paths[i], episodes, row, len(played[i]))
                played[i].append(found[row])
    return [vote(records) for records in played]


def agreement(records: Sequence[dict]) -> list[float]:
    """An episode's value: the share of all episodes that gave its answer; 0 without an answer."""
    names = [rewards.normalize_answer(record["answer"] or "") for record in records]
    votes = collections.Counter(names)
    return [votes[name] / len(names) if name else 0.0 for name in names]


def select_path(root: Node, value: Sequence[float]) -> list[Node]:
    """The path to play on from, by UCT (Kocsis and Szepesvari 2006)."""
    path = [root]
    while path[-1].children:
        node = path[-1]
        through_children = {number for child in node.children.values() for number in child.passed}
        arms = [(node, [number for number in node.passed if number not in through_children])]
        arms += [(child, child.passed) for child in node.children.values()]

        bounds = [_upper_bound(passed, value, len(node.passed)) for _, passed in arms]
        best = arms[bounds.index(max(bounds))][0]
        if best is node:
            break
        path.append(best)
    return path


def _upper_bound(passed: Sequence[int], value: Sequence[float], visits: int) -> float:
    """UCT's bound of an arm: the mean value of its episodes, and a bonus that falls with their number."""
    mean = sum(value[number] for number in passed) / max(len(passed), 1)
    return mean + EXPLORATION * math.sqrt(math.log(visits + 1) / (len(passed) + 1))


def grow_path(path: Sequence[Node], episodes, row: int, number: int):
    """Enters episode `number`, which was played from path[-1], and the node after its first new search.

    episodes: finished ones, of which `row` is this one.
    """
    leaf = path[-1]
    for node in path:
        node.passed.append(number)
    spans = np.asarray(episodes.documents_span[row])
    ends = [(int(stop), turn) for turn, (_, stop) in enumerate(spans) if stop > len(leaf.tokens)]
    if not ends or int(episodes.roles[row][ends[0][0]]) == types.PAD:
        return
    stop, turn = ends[0]
    row_roles = np.asarray(episodes.roles[row])
    while stop < len(row_roles) and row_roles[stop] == types.TEMPLATE:  # the closing tag
        stop += 1
    tokens = tuple(int(t) for t in episodes.tokens[row][:stop])
    child = leaf.children.setdefault(tokens, Node(tokens, turn + 1))
    child.passed.append(number)
