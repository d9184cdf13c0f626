"""Evaluation of base, trained policy and baselines with the real engine, and the report.

Each evaluation is kept under its policy and its settings (`zsjax.evaluation.kept_evaluations`). The stage makes those of
the config that are missing or in which searches failed. evaluation.json holds the rows of all evaluations of the config.
"""

import dataclasses

from zsjax.errors import UserError
from zsjax.evaluate import name_of_group, summarize
from zsjax.evaluation import compare, kept_evaluations
from zsjax.evaluation.kept_evaluations import Evaluation
from zsjax.parallel import hosts
from zsjax.run.stages.context import Run
from zsjax.run.stages.evaluation_parts import Parts


class SearchesFailed(UserError):
    """Most searches of an evaluation failed. The same command repeats it."""

    exit_code = 1


def evaluate(run: Run, parts: "Parts | None" = None):
    """Plays what is not kept yet, and writes the tables. parts: in place of the evaluations of the run's config."""
    parts = parts or Parts(run)
    number = max((evaluation.number for evaluation in parts.kept.all()), default=0)
    run.writer.truncate("evaluate", number)
    done = []
    for part in parts.all():
        evaluation = _found(run, parts.kept, part.wanted)
        if evaluation is None:
            number += 1
            evaluation = _made(run, parts, part, number)
        done.append(evaluation)
    rows = [row for evaluation in done for row in evaluation.rows]
    for row in rows:
        run.writer.note(_line(row))
    subjects = {evaluation.subject.role: evaluation.subject for evaluation in done}
    if kept_evaluations.TRAINED not in subjects and kept_evaluations.BASE in subjects:
        run.writer.note("evaluate: this run has trained no policy (models/policy); the rows are of the one that it starts "
                        f"from, {subjects[kept_evaluations.BASE].source}")
    _finish(run, parts.kept, done, rows)


def _found(run, folder, wanted) -> Evaluation | None:
    """The kept evaluation like `wanted`, None if a search of it failed. Hosts without the files get `wanted` itself."""
    def find():
        found = folder.find(wanted) if hosts.is_lead() else None
        if found and not found.failed_searches:
            folder.records(found.name)  # raises where they are damaged, before other stages rely on them
        return found

    found = hosts.together(find)
    if not hosts.agree(found is not None and not found.failed_searches):
        return None
    run.writer.note(f"evaluate: evaluation/{wanted.name} is there already")
    return found or wanted


def _made(run, parts, part, number) -> Evaluation:
    """Plays an evaluation and keeps it, unless an earlier one with fewer failed searches is kept."""
    records, lines = part.play()
    for line in lines:
        run.writer.write(number, line, "evaluate", show=False)
    made = dataclasses.replace(part.wanted, number=number)
    made = made.with_records(records, summarize(made.title, records, parts.questions, total=True))
    if not hosts.is_lead():
        return made
    before = parts.kept.find(part.wanted)
    if before is not None and before.failed_searches < made.failed_searches and parts.kept.has_records(before.name):
        run.writer.note(f"evaluate: {made.failed_searches} searches of {made.title} failed; the earlier evaluation with "
                        f"{before.failed_searches} is kept")
        return before
    parts.kept.add(made, records)
    return made


def _finish(run, folder, done, rows):
    """Writes tables and evaluation.json. Raises SearchesFailed where an evaluation is not finished."""
    unfinished = [evaluation for evaluation in done if not evaluation.finished]
    if hosts.agree(bool(unfinished)):
        what = "; ".join(f"{evaluation.title}: {evaluation.failed_searches} of {evaluation.searches} searches failed"
                         for evaluation in unfinished)
        raise SearchesFailed(f"the evaluation is not finished: {what}. See that search.eval_engine = "
                             f"{run.config.search.eval_engine!r} answers and start the same command again")
    if not hosts.is_lead():
        return
    sides = {evaluation.part: evaluation for evaluation in done}
    if "after" in sides:
        compared = compare.compare_records(*(folder.records(sides[part].name) for part in ("before", "after")),
                                           seed=run.config.seed)
        run.write_json("evaluation/comparison.json", compared)
        run.writer.note("before (first) and after (second) training, paired bootstrap:\n"
                        + compare.comparison_table(compared))
    compare.write_tables(run.workdir, rows)
    run.write_json("evaluation.json", rows)


def _line(row) -> str:
    group = " ".join((name_of_group(row) or f"hops {row['hops']}").split())
    failed = f"  {row['failed_searches']} searches FAILED" if row["failed_searches"] else ""
    return (f"{row['name']:<60} {group}  EM {row['em']:.3f} ± {row['em_se']:.3f}  F1 {row['f1']:.3f}  "
            f"answered {row['answered']:.2f}  searches {row['searches']:.2f}  n {row['n']}{failed}")


def report(run: Run):
    from zsjax import report

    if hosts.is_lead():
        run.writer.note(f"report: {report.write(run.workdir)}")
