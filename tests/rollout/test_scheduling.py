"""The scheduling rules on numpy and on jax arrays, held against plain loops; the table of actions."""

import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.errors import InputError
from zsjax.rollout import schedule
from zsjax.rollout.actions import ACTIONS, DOCUMENTS, HINT, NOTHING, Action, Rule, load_actions, rules, tags
from zsjax.types import ANSWERED, RUNNING


def test_rules_equal_plain_loops_in_numpy_and_jax():
    rng = np.random.default_rng(0)
    for _ in range(50):
        R, threshold = int(rng.integers(1, 7)), float(rng.choice([0.0, 0.5, 0.85, 1.0]))
        status, waits = rng.integers(0, 3, (2, R)).astype(np.int8), rng.integers(0, 4, (2, R)).astype(np.int8)
        left, flag = rng.integers(0, 4, 2).astype(np.int32), rng.random((2, R)) < 0.5
        asked, there = rng.random((2, 2, R, 2)) < 0.5
        for shard in range(2):
            rows = list(zip(status[shard], waits[shard], flag[shard], strict=True))
            samples = sum(s == RUNNING and w == NOTHING for s, w, _ in rows)
            running = sum(s == RUNNING for s, *_ in rows)
            want = {
                "low": samples <= np.float32(threshold) * np.float32(min(R, left[shard] + running)),
                "can_refill": running < R and left[shard] > 0, "finished": running == 0 and left[shard] == 0,
                "served": [w == HINT or f for _, w, f in rows],
                "unrequested": [w >= DOCUMENTS and not f for _, w, f in rows],
                "replied": [bool(sum(a)) and all(t for a, t in zip(a, t, strict=True) if a)
                            for a, t in zip(asked[shard], there[shard], strict=True)]}
            for xp in (np, jnp):
                s, w, n, f = xp.array(status), xp.array(waits), xp.array(left), xp.array(flag)
                found = {"low": schedule.low(s, w, n, threshold), "can_refill": schedule.can_refill(s, n),
                         "finished": schedule.finished(s, n), "served": schedule.served(w, f),
                         "unrequested": schedule.unrequested(w, f),
                         "replied": schedule.replied(xp.array(asked), xp.array(there))}
                for name, value in want.items():
                    np.testing.assert_array_equal(found[name][shard], value, err_msg=name)


def test_slots_of_a_schedule():
    assert schedule.Schedule().sizes(10) == (10, 10) and schedule.Schedule(rows=6).sizes(10) == (6, 2)
    assert schedule.Schedule(rows=6, slots=9).sizes(4) == (4, 4)


def test_the_table_of_actions_is_indexed_by_event():
    table = rules(ACTIONS)
    assert tags() == ("<search>", "</search>", "<answer>", "</answer>") and len(table) == 1 + len(tags())
    assert Rule(*table[0]) == Rule(0) and Rule(*table[3]) == Rule(1, opens=1)
    assert Rule(*table[2]) == Rule(0, closes=1, waits_for=DOCUMENTS)
    assert Rule(*table[4]) == Rule(1, closes=1, ends=ANSWERED)
    another = rules((*ACTIONS, Action("open", asks=True)))
    np.testing.assert_array_equal(another[:5], table)
    assert Rule(*another[6]) == Rule(2, closes=1, waits_for=DOCUMENTS + 2)


@pytest.mark.parametrize("make, message", [
    (lambda: Action("two words", asks=True), "'two words'.*letters"),
    (lambda: Action("both", asks=True, ends=ANSWERED), "asks and ends"),
    (lambda: load_actions(["answer"]), "one must ask"),
    (lambda: load_actions(["search"]), "one must end"), (lambda: load_actions(["search", "answer", "search"]), "same tags"),
    (lambda: load_actions(["search", "open"]), "unknown action 'open': one of search, answer or 'package.module:name'"),
    (lambda: load_actions(["search", f"{__name__}:np"]), "is not an object of Action")])
def test_a_table_that_cannot_work_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
