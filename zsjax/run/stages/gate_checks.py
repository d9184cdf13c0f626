"""Gates between stages: a base that cannot read, or a simulator that leaks, stops the run."""

from zsjax.data.question_metadata import right_queries
from zsjax.parallel import hosts
from zsjax.run import build
from zsjax.run.stages.context import Run
from zsjax.search.simulator.simulator import Simulator


def check_reading(run: Run, model, params):
    """The first gate: the base answers when it is given the right documents. params: of `for_decoding`."""
    from zsjax.tiny_world.reading import documents_given

    config = run.config
    if not config.data.eval.startswith(build.TINY_WORLD):
        return
    engine = run.engine("bm25", config.data.eval_corpus)  # on all hosts, which make an index together
    rows = hosts.from_lead(lambda: documents_given(
        model, params, run.tokenizer, engine, build.questions(config, config.data.eval, config.data.eval_limit), config))
    for row in rows:
        run.writer.note(f"gate reading: right documents given, {row['hops']} hop(s): EM {row['em']:.2f} (n={row['n']})")
    gate = config.gates.reading
    failed = [f"reading: with the right documents given {row['em']:.2f} of {row['hops']}-hop questions are answered, "
              f"at least {gate} needed" for row in rows if gate is not None and row["em"] < gate]
    run.add_gates([{"gate": "reading", **row} for row in rows], failed)


def check_held_out(run: Run, rows: list[dict]):
    """The second gate where questions do not know their right queries: on held-out searches, after tuning.

    rows: what `tune.tune` reports. Where the questions do know them, `check_simulator` asks more exactly, and these rows
    are only kept.
    """
    from zsjax.tuning.simulator_gates import failed_on_held_out

    measured = all(map(right_queries, run.train_questions))
    failed = [line for row in rows if row.get("simulator") == "after tuning" and not measured
              for line in failed_on_held_out(row, run.config.gates)]
    run.add_gates([{"gate": "held-out searches", **row} for row in rows], failed)


def check_simulator(run: Run, simulator: Simulator):
    """The second gate: useful documents hold the answer, noisy ones do not, and off-path queries get no more than from
    BM25. simulator: with parameters of `for_decoding`."""
    from zsjax.tuning import simulator_gates as gates

    config = run.config
    questions = run.train_questions
    if not all(map(right_queries, questions)):
        instead = "held-out searches are measured" if config.collect.hold_out else "set collect.hold_out to measure it"
        run.writer.note(f"gate simulator: the questions do not know their right queries; {instead}")
        return
    engine = run.engine("bm25", config.data.corpus)
    rows = hosts.from_lead(lambda: gates.gold_shares(
        simulator, engine, questions, k=config.search.num_documents, limit=config.gates.questions, seed=config.seed))
    run.writer.note(gates.shares_table(rows))
    run.add_gates([{"gate": "simulator", **row} for row in rows], gates.failed_gates(rows, config.gates))
