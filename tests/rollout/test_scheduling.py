"""The scheduling rules on numpy and on jax arrays, held against plain loops; the table of actions."""

import jax.numpy as jnp
import numpy as np

from zsjax.rollout import schedule
from zsjax.rollout.actions import ACTIONS, DOCUMENTS, HINT, NOTHING, Rule, rules, tags
from zsjax.types import ANSWERED, RUNNING


def test_rules_equal_plain_loops_in_numpy_and_jax():
    rng = np.random.default_rng(0)
    for _ in range(50):
        R, threshold = int(rng.integers(1, 7)), float(rng.choice([0.0, 0.5, 0.85, 1.0]))
        status, waits = rng.integers(0, 3, (2, R)).astype(np.int8), rng.integers(0, 3, (2, R)).astype(np.int8)
        left, flag = rng.integers(0, 4, 2).astype(np.int32), rng.random((2, R)) < 0.5
        for shard in range(2):
            rows = list(zip(status[shard], waits[shard], flag[shard]))
            samples = sum(s == RUNNING and w == NOTHING for s, w, _ in rows)
            running = sum(s == RUNNING for s, *_ in rows)
            want = {
                "low": samples <= np.float32(threshold) * np.float32(min(R, left[shard] + running)),
                "can_refill": running < R and left[shard] > 0, "finished": running == 0 and left[shard] == 0,
                "served": [w == HINT or f for _, w, f in rows],
                "unrequested": [w == DOCUMENTS and not f for _, w, f in rows]}
            for xp in (np, jnp):
                s, w, n, f = xp.array(status), xp.array(waits), xp.array(left), xp.array(flag)
                found = {"low": schedule.low(s, w, n, threshold), "can_refill": schedule.can_refill(s, n),
                         "finished": schedule.finished(s, n), "served": schedule.served(w, f),
                         "unrequested": schedule.unrequested(w, f)}
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
