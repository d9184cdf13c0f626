"""The JSON document has all that the text says; compiled figures stand beside their floor and their estimate."""

import json

import jax
import pytest

from tests import planned_run
from zsjax import config as configuration
from zsjax import plan
from zsjax.config import resolve
from zsjax.launch import main
from zsjax.plan import aot, memory, text
from zsjax.plan.setup import make_setup, not_counted
from zsjax.plan.targets import read_target

SMALL = planned_run.SMALL | dict(stages=("train",))
PHASE = dict(name="decode", turns=None, times=None, kernels=7, bytes=4e9, flops={"bf16": 2e9}, exchanged={"all-gather": 3e6},
             seconds=2e-3, floor=dict(bytes=3e9, flops={"bf16": 1e9}, seconds=1e-3), copies=2, copied=5e6, widened=4e6)


def config(**rooms):
    return resolve({**SMALL, **{room: {**SMALL.get(room, {}), **fields} for room, fields in rooms.items()}})


def program(name, size, **more):
    return dict(program=name, arguments=size, outputs=0, aliased=0, temporaries=size, code=0, flops=None, phases=[]) | more


def planned(monkeypatch, lines, **rooms):
    """A plan with figures of programs as a compiler would give them."""
    monkeypatch.setattr(plan, "compile_programs", lambda *_: lines)
    monkeypatch.setattr(plan, "has_compiler", lambda _: True)
    return plan.make_plan(config(**rooms), "h100:8", advise=False)


def test_the_text_says_nothing_that_the_document_has_not(monkeypatch):
    lines = [program("rollout", 10**9, phases=[PHASE]), dict(program="score", error="too large"),
             program("update", 10**6, flops=1e9)]
    made = planned(monkeypatch, lines)
    read = json.loads(json.dumps(plan.document(made)))
    assert text.write(read) == plan.describe(made)
    assert not read["fits"] and read["peak"] is None and read["compiled"][1]["peak"] is None
    assert {figure["name"] for figure in read["memory"]} == {figure.name for figure in made.figures if figure.bytes}


def test_plan_prints_one_document(tmp_path, capsys):
    path = tmp_path / "small.py"
    path.write_text(f"import ml_collections\n\ndef get_config():\n    return ml_collections.ConfigDict({SMALL!r})\n")
    assert main(["plan", "--json", "--estimate", "--target=h200:8", "--config", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"]["name"] == "h200:8" and found["fits"] and found["compiled"] == []
    assert found["only_estimated"] == ["rollout", "score", "update"]
    assert found["seconds"] == pytest.approx(sum(part["seconds"] for part in found["work"]))
    assert found["peak"] == max(found["estimated_peaks"].values())


def test_phases_are_shown_beside_their_floor_with_copies_and_exchanges(monkeypatch):
    shown = plan.describe(planned(monkeypatch, [program("rollout", 10**6, phases=[PHASE])])).splitlines()
    at = next(i for i, line in enumerate(shown) if "decode a turn" in line)
    assert "2 ms" in shown[at].replace("kus", "ms") or "2 kus" in shown[at]
    assert "floor; 3 GB, 1 GFLOP in bf16" in shown[at + 1] and "1 kus" in shown[at + 1]
    assert "3 MB  exchanged by all-gather" in shown[at + 2]
    assert "5 MB  in 2 copies, of which 4 MB in a larger dtype" in shown[at + 3]


def test_a_compiled_figure_stands_beside_its_estimate(monkeypatch):
    made = planned(monkeypatch, [program("update", 3 * 10**6, flops=3e9), program("rollout", 10**6)])
    update, rollout = plan.document(made)["compiled"]
    peaks = memory.peak(made.figures)
    always = {figure.name: figure.bytes for figure in made.figures if figure.phase == memory.ALWAYS}
    beside = always["reference parameters"] + always["simulator parameters"]  # the others are its arguments
    assert update["peak"] == 6 * 10**6 + beside
    assert update["estimated_peak"] == peaks["update"] and update["difference"] == update["peak"] / peaks["update"] - 1
    assert rollout["estimated_peak"] == peaks["rollout"] and "flops_difference" not in rollout
    work = next(part for part in made.work if part.name == "update")
    assert update["flops_difference"] == pytest.approx(3e9 / work.flops - 1)
    assert f"so {100 * update['difference']:+.0f} %" in plan.describe(made)


def test_a_rollout_without_a_program_counts_by_its_estimate(monkeypatch):
    lines = [program("update", 1), program("score", 1)]
    rooms = dict(search=SMALL["search"] | dict(engine="bm25"), data=dict(corpus="tiny_world:train"))
    made = planned(monkeypatch, lines, **rooms)
    assert made.peak == memory.peak(made.figures)["rollout"] > max(made.peak_of(line) for line in lines)
    assert plan.document(made)["only_estimated"] == ("rollout",)
    assert plan.describe(made).splitlines()[-1].endswith("exact but for the rollout, estimated")
    assert planned(monkeypatch, [*lines, program("rollout", 1)]).only_estimated == ()


@pytest.mark.slow  # three compiled rollouts
def test_growing_caches_are_programs_of_their_own():
    setup = make_setup(config(rollout=dict(capacities=2)), read_target("v5e:8"))
    assert setup.capacities == [32, 64]
    lowered = aot.programs(setup, jax.devices())
    assert [name for name in lowered if "rollout" in name] == ["rollout, 32 slots", "rollout, 64 slots"]
    first, further = (aot.measure(lowered[name]().compile()) for name in ("rollout, 32 slots", "rollout, 64 slots"))
    held = {figure.name: figure.bytes for figure in memory.footprint(setup)}
    # The state that the second program goes on from: the whole cache, and the prompts' cache.
    assert further["arguments"] - first["arguments"] > held["policy cache"] + held["prompts' cache, from which rows begin"]
    assert further["aliased"] > held["policy cache"]  # it is written in place
    smaller = memory.grown_from(setup, "rollout, 64 slots")
    assert smaller == pytest.approx(held["policy cache"] / 2, rel=0.01) and not memory.grown_from(setup, "rollout, 32 slots")


def test_the_smaller_cache_counts_while_it_grows(monkeypatch):
    line = program("rollout, 64 slots", 10**6) | dict(temporaries=0)
    with_both = planned(monkeypatch, [line], rollout=dict(capacities=2))
    alone = with_both.peak_of(line | dict(program="rollout"))
    assert with_both.peak_of(line) - alone == memory.grown_from(with_both.setup, "rollout, 64 slots") > 0


def test_a_reranker_is_an_input_of_the_rollout_and_a_program():
    ranked = make_setup(config(search=dict(rerank=dict(candidates=4, buckets=512))), read_target("v5e:8"))
    lowered = aot.programs(ranked, jax.devices())
    assert set(lowered) <= set(memory.ARGUMENTS)
    state = {figure.name: figure.bytes for figure in memory.footprint(ranked)}["reranker and its optimizer state"]
    assert state < aot.measure(lowered["reranker"]().compile())["arguments"] < state + 10**5
    assert "tensor<2x512xf32>" in lowered["rollout"]().as_text()  # its bags
    assert any("reranker" in line for line in not_counted(ranked))


@pytest.mark.parametrize("rooms, named", [
    (dict(search=SMALL["search"] | dict(engine="bm25")), "search.engine = 'bm25'"),
    (dict(search=SMALL["search"] | dict(engine="mixed")), "search.engine = 'mixed'"),
    (dict(stages=("warm_start", "train", "report")), "the stages warm_start"),
    (dict(algorithm=dict(scorers=dict(teacher="package.module:function"))), "algorithm.scorers: teacher")])
def test_what_is_not_counted_is_said(rooms, named):
    always = not_counted(make_setup(config(), read_target("h100:8")))
    setup = make_setup(configuration.resolve(SMALL | rooms, check=False), read_target("h100:8"))
    (line,) = set(not_counted(setup)) - set(always)
    assert named in line and len(always) == 1
    if "engine" in named:
        assert not any("rollout" in name for name in aot.programs(setup, jax.devices()))
