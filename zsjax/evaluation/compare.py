"""Tables of a run's evaluations in the paper's layout, and paired comparisons of runs."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from zsjax.errors import InputError, InputNotFound, UserError
from zsjax.evaluate import SCORES, key_of, name_of_group, paired_bootstrap
from zsjax.evaluation import kept_evaluations, tables
from zsjax.monitor.writer import read_jsonl
from zsjax.parallel.files import remove_abandoned, write_text
from zsjax.rewards import ANSWER_KINDS, answer_kind


def write_tables(workdir: pathlib.Path, evaluation: Sequence[dict]) -> list[pathlib.Path]:
    """Writes evaluation/table.{md,csv,html} of rows of `evaluate.summarize`; nothing where no row names a data set."""
    if not any("data_set" in row for row in evaluation):
        return []
    header, rows = tables.paper_table(evaluation)
    texts = {"md": tables.to_markdown(header, rows) + f"\n{tables.NOTE}\n", "csv": tables.to_csv(header, rows),
             "html": tables.to_html(header, rows) + f"<p>{tables.NOTE}</p>\n"}
    paths = []
    for ending, text in texts.items():
        path = workdir / "evaluation" / f"table.{ending}"
        remove_abandoned(path)
        write_text(path, text)
        paths.append(path)
    return paths


def compare_records(first: Sequence[dict], second: Sequence[dict], *, seed: int = 0) -> list[dict]:
    """`evaluate.paired_bootstrap` of every score and of reach: over all questions, over those of each
    `rewards.answer_kind`, where there are several, and over each data set's own."""
    scores = [*SCORES, *(["reach"] if all("reach" in record for record in (*first, *second)) else [])]
    kinds = [set(map(_kind, records)) for records in (first, second)]
    several = kinds[0] if kinds[0] == kinds[1] and len(kinds[0]) > 1 else ()
    names = dict.fromkeys(record["data_set"] for record in first if "data_set" in record)
    groups = [{"data_set": "all"}, *({"data_set": "all", "answers": kind} for kind in ANSWER_KINDS if kind in several),
              *({"data_set": name} for name in names)]
    rows = []
    for group in groups:
        sides = [[record for record in records if _inside(record, group)] for records in (first, second)]
        rows += [{**group, **paired_bootstrap(*sides, score=score, seed=seed)} for score in scores]
    return rows


def _inside(record, group) -> bool:
    return (group["data_set"] in ("all", record.get("data_set"))
            and group.get("answers") in (None, _kind(record)))


def _kind(record) -> str:
    return answer_kind(record.get("question", ""), record.get("golden_answers", ()))


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison. policy: the policy's name, with notes for the reader. how: as of `Evaluation`."""

    policy: str
    records: Sequence[dict]
    how: Mapping = dataclasses.field(default_factory=dict)


def compare_runs(first: pathlib.Path, second: pathlib.Path, *, first_seeds: Sequence[pathlib.Path] = (),
                 second_seeds: Sequence[pathlib.Path] = ()) -> list[dict]:
    """`compare_records` of two evaluations; each row names the policy of each side.

    Args:
      first, second: each a run's folder or a file WORKDIR/evaluation/NAME.jsonl. Of a folder, evaluations of the trained
        policy are taken, or of the base if the run has trained none; of these, the newest pair with equal options.
      first_seeds, second_seeds: further runs of each side, as `first`. A question's score is the mean over a side's runs,
        so that the luck of one training weighs less; the errors are over questions all the same.

    Raises:
      UserError: a run was not evaluated since it was trained, or two of them answered different questions.
    """
    one, other = _pair(_sides(pathlib.Path(first)), _sides(pathlib.Path(second)))
    one, other = _with_seeds(one, first_seeds), _with_seeds(other, second_seeds)
    try:
        rows = compare_records(one.records, other.records)
    except InputError as error:
        raise InputError(f"{first} and {second} cannot be compared: {error}") from error
    differ = sorted(name for name in one.how.keys() & other.how.keys() if one.how[name] != other.how[name])
    marks = {"first_policy": one.policy, "second_policy": other.policy}
    return [{**row, **marks, **({"differ": differ} if differ else {})} for row in rows]


def _with_seeds(side: Side, paths: Sequence[pathlib.Path]) -> Side:
    """The side with the records of further runs, each a sample of its own (`evaluate.paired_bootstrap` averages them)."""
    asked, parts, names = sorted(map(key_of, side.records)), [side.records], [side.policy]
    for path in map(pathlib.Path, paths):
        alike = next((other for other in _sides(path) if sorted(map(key_of, other.records)) == asked), None)
        if alike is None:
            raise InputError(f"{path} did not answer the questions of {side.policy}; compare seeds of one evaluation")
        parts.append(alike.records)
        names.append(alike.policy)
    records = [{**record, "sample": (run, record.get("sample"))} for run, part in enumerate(parts) for record in part]
    return dataclasses.replace(side, policy=" and ".join(names), records=records) if paths else side


def _pair(firsts, seconds):
    """The newest pair with equal options, else with equal questions, else the newest pair."""
    pairs = [(one, other) for one in firsts for other in seconds]
    alike = [pair for pair in pairs if pair[0].how == pair[1].how]
    asked = [pair for pair in pairs if pair[0].how.get("questions") == pair[1].how.get("questions")]
    return (alike or asked or pairs)[0]


def _sides(path: pathlib.Path) -> list[Side]:
    """The evaluations of a run's policy, newest first, or the one that `path` names."""
    if path.suffix == ".jsonl":
        folder = kept_evaluations.Kept(path.resolve().parent.parent)
        found = [evaluation for evaluation in folder.all() if evaluation.name == path.stem]
        if found:
            return [_side(folder, found[0])]
        if not path.is_file():
            raise InputNotFound(f"{path}: no such evaluation; name a file of WORKDIR/evaluation or the run's folder")
        return [Side(f"{path} (an earlier version's)", _records(path))]
    folder, trained = kept_evaluations.Kept(path), kept_evaluations.Kept(path).trained_fingerprint()
    found = [evaluation for evaluation in folder.all() if evaluation.part in ("before", "after")]
    after = [evaluation for evaluation in found if evaluation.subject.role == kept_evaluations.TRAINED
             and trained in (None, evaluation.subject.fingerprint)]
    if trained is None and not after:
        after = found
    if after:
        finished = [_side(folder, evaluation) for evaluation in reversed(after) if evaluation.finished]
        if not finished:
            raise UserError(f"{path}: most searches of its evaluation failed; run `evaluate --workdir {path}` again")
        return finished
    return [_earlier(path, found, trained is not None)]


def _side(folder, evaluation) -> Side:
    failed = (f", {evaluation.failed_searches} of {evaluation.searches} searches FAILED"
              if evaluation.failed_searches else "")
    return Side(f"{evaluation.subject} of {folder.workdir} (evaluation/{evaluation.name}{failed})",
                folder.records(evaluation.name), evaluation.how)


def _earlier(path, found, trained) -> Side:
    """The evaluation of a version before 0.2, which does not name its policy."""
    files = {name: path / "evaluation" / f"{name}.jsonl" for name in ("after", "before")}
    name = next((name for name in files if files[name].exists()), None)
    if trained and (found or name == "before"):
        raise UserError(f"{path}: its trained policy was not evaluated, only the untrained base or an earlier policy; "
                        f"run `evaluate --workdir {path}` first")
    if name is None:
        raise UserError(f"{path} has no evaluation: run `evaluate --workdir {path}` first")
    policy = "trained policy" if name == "after" else "untrained base"
    return Side(f"{policy} of {path} (evaluation/{name}, an earlier version's)", _records(files[name]))


def _records(path) -> list[dict]:
    """The records of a file that no kept evaluation describes. Raises InputError for a line that is not a record."""
    records = read_jsonl(path)
    for number, record in enumerate(records, 1):
        if what := _problem(record):
            raise InputError(f"{path}, row {number}: {what}, so it is not the record of an evaluation; name a file of "
                             "WORKDIR/evaluation or the run's folder")
    return records


def _problem(record) -> str:
    """What a comparison cannot use in a record; "" for nothing."""
    if not (record.get("key") or record.get("id")):
        return "the field id is missing"
    for name in (*SCORES, *(["reach"] if "reach" in record else [])):
        if not isinstance(record.get(name), int | float):
            return f"{name} = {record[name]!r:.100} is not a number" if name in record else f"the field {name} is missing"
    for name in ("key", "id", "question"):
        if not isinstance(record.get(name, ""), str):
            return f"{name} = {record[name]!r:.100} is not a text"
    for name in ("data_set", "sample"):
        if not isinstance(record.get(name), str | int | float | None):
            return f"{name} = {record[name]!r:.100} is neither text nor number"
    golds = record.get("golden_answers", [])
    if not (isinstance(golds, str | list) and all(isinstance(gold, str) for gold in golds)):
        return f"golden_answers = {golds!r:.100} is not a list of texts"
    return ""


def comparison_table(rows: Sequence[dict]) -> str:
    """The comparison as Markdown, below lines that name the policy of each side where the rows know it."""
    cells = [[name_of_group(row), row["score"], str(row["n"]), f"{row['first']:.3f}", f"{row['second']:.3f}",
              f"{row['difference']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}", f"{row['p']:.3g}"] for row in rows]
    header = ["data set", "score", "n", "first", "second", "second - first", "95 % interval", "p"]
    lines = [f"{side}: {rows[0][f'{side}_policy']}" for side in ("first", "second") if f"{side}_policy" in rows[0]]
    if rows[0].get("differ"):
        lines.append(f"The two evaluations differ in {', '.join(rows[0]['differ'])}.")
    return "".join(f"{line}\n" for line in lines) + ("\n" if lines else "") + tables.to_markdown(header, cells)
