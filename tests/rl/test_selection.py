"""Which episodes teach: groups with a signal, refilling, the most informative rows."""

import numpy as np
import pytest

from zsjax.rl import selection


def test_groups_with_signal():
    scores, groups = [1, 1, 0, 0, 0.5, 0, 7], [3, 3, -1, -1, -1, 8, 9]
    got = selection.groups_with_signal(scores, groups)
    assert got.tolist() == [False, False, True, True, True, False, False]


def test_whole_groups_are_replaced_and_the_rest_is_kept():
    def part(scores, first_group):
        groups = np.repeat(np.arange(len(scores)) + first_group, 2)
        names = np.empty(len(groups), object)
        names[:] = [f"{g}.{i}" for g, i in zip(groups, [0, 1] * len(scores), strict=False)]
        flat = np.array(scores, float).ravel()
        return {"group_id": groups, "tokens": groups[:, None] * np.ones((1, 3)), "scores": flat, "f1": flat * 2,
                "names": names}

    first = part([[0, 0], [0, 1], [1, 1], [0, 0]], 0)
    second = part([[1, 1], [1, 0], [0, 1], [0, 0]], 4)
    merged = selection.merge_groups(first, second, scores=(first["scores"], second["scores"]),
                                    group_id=(first["group_id"], second["group_id"]))
    assert merged["group_id"].tolist() == [5, 5, 1, 1, 6, 6, 3, 3]
    assert merged["names"].tolist() == ["5.0", "5.1", "1.0", "1.1", "6.0", "6.1", "3.0", "3.1"]
    assert merged["scores"].tolist() == [1, 0, 0, 1, 0, 1, 0, 0] and merged["f1"].tolist() == (merged["scores"] * 2).tolist()
    assert merged["tokens"][:, 0].tolist() == merged["group_id"].tolist()
    assert first["group_id"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # what was given is left alone


def test_the_most_informative_rows():
    scores = [0, 0, 0, 1, 0, 0.5, 1, 0]
    groups, searches = [0, 0, 1, 1, 2, 2, 3, 3], [1, 3, 0, 2, 2, 2, 0, 5]

    def keep(how, count):
        return selection.keep_rows(how, count, scores=scores, group_id=np.array(groups),
                                                      num_searches=np.array(searches)).tolist()

    assert keep("reward_spread", 4) == [2, 3, 6, 7] and keep("reward_spread", 6) == [2, 3, 4, 5, 6, 7]
    assert keep("search_depth", 2) == [1, 7] and keep("search_depth", 3) == [1, 3, 7]
    with pytest.raises(ValueError, match="reward_spread"):
        keep("luck", 1)


@pytest.mark.parametrize("how", ["search_depth", "reward_spread"])
def test_rows_that_the_loss_leaves_out_take_no_place(how):
    valid = np.array([0, 0, 0, 0, 1, 1, 1, 1], bool)
    got = selection.keep_rows(how, 4, scores=[0, 5, 0, 5, 0, 1, 0, 1], group_id=np.repeat([0, 1], 4),
                              num_searches=np.array([3] * 4 + [1] * 4), row_valid=valid)
    assert got.tolist() == [4, 5, 6, 7]
