"""The last results of all campaigns, as one table: made of the JSON summaries that they wrote.

    python -m tests.campaigns.table [FOLDER]

copies the summaries of FOLDER (ZSJAX_CAMPAIGN_FOLDER) into tests/campaigns/results/, a short form of each, and writes the
table into tests/campaigns/RESULTS.md, between the lines that begin with <!-- table. Without a folder only the table is made.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
BEGIN, END = "<!-- table: python -m tests.campaigns.table -->\n", "<!-- table: end -->"
HOURS = 4  # of all campaigns together, at most
CAMPAIGNS = ("kills", "signals", "two_processes", "disk", "damage", "engines", "paid", "input", "injection", "load",
             "hardware", "long_run", "ratios")
KEPT = ("campaign", "cases", "failures", "kinds", "counts", "seconds", "cpu_seconds", "slowest", "cores", "memory_mb",
        "commits", "codes", "found")
HEAD = """\
| campaign | cases | failed | hours | CPU hours | slowest case, s | memory, MB | commit (cases) | code of zsjax (cases) |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main(arguments) -> int:
    kept, page = HERE / "results", HERE / "RESULTS.md"
    for folder in map(pathlib.Path, arguments):
        for path in sorted(folder.glob("*.json")):
            summary = json.loads(path.read_text())
            if isinstance(summary, dict) and summary.get("campaign") == path.stem:
                kept.mkdir(exist_ok=True)
                text = json.dumps(short(summary), indent=1).replace(str(folder.absolute()), "FOLDER")  # no machine's paths
                (kept / path.name).write_text(text + "\n")
    page.write_text(with_table(page.read_text(), table(summaries(kept))))
    return 0


def short(summary: dict) -> dict:
    """A summary as the repository keeps it: without the printed line, and failures by their first words."""
    failures = {case: text.splitlines()[0][:200] for case, text in summary["failures"].items()}
    return {name: failures if name == "failures" else summary[name] for name in KEPT if name in summary}


def summaries(folder: pathlib.Path) -> list[dict]:
    """The summaries of a folder, in the order of CAMPAIGNS, others last."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return [found[name] for name in [*CAMPAIGNS, *sorted(found.keys() - set(CAMPAIGNS))] if name in found]


def table(found: list[dict]) -> str:
    """The table of some summaries, and a line with the totals, with what is missing, and whether all are of one code."""
    if not found:
        return "No summary is there.\n"
    rows = "".join(
        f"| `{of['campaign']}` | {of['cases']:,} | {len(of['failures'])} | {of['seconds'] / 3600:.2f} | "
        f"{of['cpu_seconds'] / 3600:.2f} | {of['slowest']:,.0f} | {of['memory_mb']:,} | {counted(of['commits'])} | "
        f"{counted(of['codes'])} |\n" for of in found)
    hours, busy = (sum(of[name] for of in found) / 3600 for name in ("seconds", "cpu_seconds"))
    failed, codes = sum(len(of["failures"]) for of in found), {code for of in found for code in of["codes"]}
    missing = sorted(set(CAMPAIGNS) - {of["campaign"] for of in found})
    return (f"{HEAD}{rows}\nTotal: {sum(of['cases'] for of in found):,} cases, {failed} failed; {hours:.2f} hours, "
            f"{busy:.2f} of CPU, at most {max(of['cores'] for of in found)} cores; {within(hours)} the {HOURS} hours. "
            f"{'All' if len(codes) == 1 else 'Not all'} are of one code of zsjax. "
            f"Not run: {', '.join(f'`{name}`' for name in missing) or 'none'}.\n")


def within(hours: float) -> str:
    return "within" if hours <= HOURS else "beyond"


def counted(of: dict) -> str:
    """The names of a count, with their numbers where there are several."""
    return ", ".join(name if len(of) == 1 else f"{name} ({number:,})" for name, number in of.items())


def with_table(page: str, made: str) -> str:
    """The page with another table."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"RESULTS.md lacks the lines {BEGIN.strip()} and {END}; put them where the table is to stand")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
