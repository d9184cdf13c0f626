"""The report's tables of scores: the evaluation that the config asks for, and what else was evaluated in the folder."""

from zsjax.errors import InputError
from zsjax.evaluation import tables
from zsjax.evaluation.kept import TRAINED
from zsjax.report.charts import escape, short


def evaluation_section(rows, folder):
    """The evaluation that the config asks for, whose it is, and what else was evaluated in this folder."""
    shown = {row.get("evaluation") for row in rows}
    try:
        others = [evaluation for evaluation in folder.all() if evaluation.name not in shown]
        warning = _whose(rows, folder.trained_fingerprint())
    except InputError as error:
        others, warning = [], str(error)
    if not rows and not others and not warning:
        return []
    body = [f"<p class=bad>{escape(warning)}</p>"] if warning else []
    body += [_evaluation_rows(rows)] if rows else []
    if others:
        more = [row for evaluation in reversed(others) for row in evaluation.rows]
        body.append(f"<details><summary>Other evaluations in this folder: earlier policies, other questions or options, "
                    f"or not finished</summary>{_evaluation_rows(more)}</details>")
    return [f"<section><h2>Evaluation</h2><p>Questions that were not trained on, ± one standard error.</p>"
            f"{''.join(body)}</section>"]


def _whose(rows, trained: str | None) -> str:
    """What a reader must be told before the table; "" where it holds the policy that the run has trained."""
    failed = tables.failed_in(rows)
    failures = f"{failed} searches of this evaluation FAILED. Evaluate again." if failed else ""
    marked = [row for row in rows if "fingerprint" in row]
    if trained is not None and not any(row["fingerprint"] == trained for row in marked):
        what = "Its rows are of other policies." if rows else ""
        return f"The policy that this run has trained (models/policy) was not evaluated. {what} {failures}".strip()
    if marked and trained is None and all(row.get("role") != TRAINED for row in marked):
        return f"This run has no trained policy: every row is of the untrained base or of no policy. {failures}".strip()
    return failures


def _evaluation_rows(rows):
    scores = [(name, title) for name, title in (("em", "Exact match"), ("f1", "F1"), ("contains", "Contains"))
              if any(name in row for row in rows)]
    others = [(name, title) for name, title in (("reach", "Gold shown"), ("searches", "Searches"), ("on_path", "On path"),
                                                ("answered", "Answered"), ("tokens", "Tokens"), ("n", "Questions"))
              if any(name in row for row in rows)]
    others += [("failed_searches", "Failed searches")] if any(row.get("failed_searches") for row in rows) else []
    head = "".join(f"<th>{title}</th>" for title in ("Policy and engine", "Hops or data set",
                                                     *(title for _, title in (*scores, *others))))
    body = []
    for index, row in enumerate(rows):
        again = index and all(row.get(name) == rows[index - 1].get(name) for name in ("name", "evaluation"))
        policy = f"<br><small>{escape(row['policy'])}</small>" if row.get("policy") else ""
        cells = [f"<td class='name'>{'' if again else escape(row.get('name', '')) + policy}</td>",
                 f"<td>{escape(row.get('data_set', row.get('hops', '')))}</td>"]
        cells += [_score_cell(row.get(name), row.get(f"{name}_se")) for name, _ in scores]
        cells += [f"<td class='num'>{escape(short(row.get(name)))}</td>" for name, _ in others]
        body.append(f"<tr{'' if again else ' class=first'}>{''.join(cells)}</tr>")
    return table(head, "".join(body))


def benchmarks_section(rows):
    """Data sets of the paper's table that were evaluated on, in its layout with its rows."""
    if not any(tables.canonical(str(row.get("data_set"))) in tables.DATA_SETS for row in rows):
        return []
    published = tables.to_html(*tables.paper_table(rows))
    return [f"<section><details open><summary>Beside the published rows</summary><p>{escape(tables.NOTE)}</p>"
            f"<div class=scroll>{published}</div></details></section>"]


def table(head, body):
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _score_cell(value, error):
    if not isinstance(value, int | float):
        return "<td class='num'>–</td>"
    error = f" <small>± {error:.3f}</small>" if isinstance(error, int | float) else ""
    return (f"<td class='score'><span class=bar style='width:{100 * min(max(value, 0), 1):.0f}%'></span>"
            f"<span>{value:.3f}{error}</span></td>")
