"""Pages that are made from the code: commands, config fields, metrics, and names that a config may use.

    python docs/generated.py            writes them anew, after a change of what they show
    python docs/generated.py --check    says which are old

MkDocs calls `on_files` and `on_page_markdown` (mkdocs.yml, `hooks`): its site also shows files outside of docs/.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import posixpath
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
# Files of the repository, and the pages of the site that show them.
COPIED = {"experiments/README.md": "experiments.md", "experiments/ledger.md": "ledger.md", "experiments/LOG.md": "log.md",
          "benchmarks/RESULTS.md": "benchmarks.md", "tests/campaigns/RESULTS.md": "campaigns.md",
          "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PICTURES = {f"experiments/ledger/{path.name}": f"ledger/{path.name}"
            for path in sorted((ROOT / "experiments" / "ledger").glob("*.svg"))}
_LINK = re.compile(r"(?P<mark>!?)\[(?P<shown>[^\]]*)\]\((?!https?:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
MARK = "<!-- Made by docs/generated.py from the code: change the code, and run it again. -->\n\n"


def on_files(files, config):
    """MkDocs' hook: adds the pages and pictures that are copied."""
    from mkdocs.structure.files import File

    for source, page in (COPIED | PICTURES).items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    """MkDocs' hook: links between files of the repository become links between pages of the site."""
    del config, files
    source = {shown: source for source, shown in COPIED.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return with_site_links(markdown, source, page.file.src_uri)


def with_site_links(text: str, source: str, page: str) -> str:
    """The text of a file of the repository as the site shows it at `page`.

    A link to a file that the site does not show becomes the file's name. Fenced code stays as it is.
    """
    def link(match):
        shown, path, anchor = match["shown"], match["path"], match["anchor"] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = (COPIED | PICTURES).get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if there is None:
            return f"{shown} (`{target}`)"
        return f"{match['mark']}[{shown}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # every second one is code
    return "".join(part if place % 2 else _LINK.sub(link, part) for place, part in enumerate(parts))


def pages() -> dict[str, str]:
    """{path of a page in docs/: its Markdown}."""
    made = {"commands": commands_page, "config": config_page, "metrics": metrics_page, "registries": registries_page}
    return {f"reference/{name}.md": MARK + make() for name, make in made.items()}


def commands() -> list[str]:
    """Names of the commands, as `python -m zsjax.launch --help` lists them."""
    listed = _help([]).partition("\ncommands:")[2]
    return re.findall(r"^    ([a-z][a-z-]*)(?: |$)", listed, re.MULTILINE)


def commands_page() -> str:
    """What argparse knows."""
    text = ["# Commands", "", "`zsjax` is short for `python -m zsjax.launch`. Without a command it is `run`.", "",
            _fenced(_help([]))]
    for command in commands():
        text += [f"## {command}", "", _fenced(_help([command]))]
    return "\n".join(text)


def _help(command: list[str]) -> str:
    from zsjax import launch

    shown, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # argparse folds lines at the width of the terminal
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            launch.parse_flags([*command, "--help"])
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return shown.getvalue()


def _fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def config_page() -> str:
    """A table for each section of `Config`, from the metadata of its fields."""
    from zsjax.config.declare import EFFECTS, leaves
    from zsjax.config.fields import Config

    sections = {"": Config} | {f.name: type(getattr(Config(), f.name)) for f in dataclasses.fields(Config)
                               if dataclasses.is_dataclass(getattr(Config(), f.name))}
    text = ["# Config fields", "",
            "Set a field in `get_config`, or as `--config.SECTION.FIELD=VALUE`. The last column says what a change means",
            "for a folder that holds a run:", "", *(f"- *{name}*: {what}." for name, what in EFFECTS.items()), ""]
    fields = leaves(Config)
    for name, cls in sections.items():
        rows = [leaf for dotted, leaf in fields.items() if dotted.rpartition(".")[0].partition(".")[0] == name]
        text += [f"## {name or 'The run'}", "", " ".join((cls.__doc__ or "").split()), "",
                 "| field | default | values | meaning | a change |", "| --- | --- | --- | --- | --- |"]
        text += [_row(f"`{leaf.name}`", f"`{leaf.default!r}`", _values(leaf), _meaning(leaf), leaf.spec.effect)
                 for leaf in rows]
        text.append("")
    return "\n".join(text)


def _values(leaf) -> str:
    spec, found = leaf.spec, []
    if spec.range:
        found.append(str(spec.range))
    if spec.choices:
        found.append(", ".join(f"`{choice}`" for choice in spec.known()))
    if spec.names:
        found.append({"function": "`package.module:function`"}.get(spec.names, spec.names))
    if not found:
        kind = leaf.kind
        found.append(kind.__name__ if isinstance(kind, type) else str(kind))
    return " or ".join(found) + (f" ({spec.unit})" if spec.unit else "")


def _meaning(leaf) -> str:
    if not leaf.spec.engines:
        return leaf.spec.help
    return f"{leaf.spec.help.rstrip('.')}. Read where searches go to {', '.join(leaf.spec.engines)}."


def metrics_page() -> str:
    """Every metric, as the code that logs it declares it (`zsjax.types.Metric`); bounds are those of the default alarms."""
    from zsjax.config.fields import HealthConfig
    from zsjax.monitor.catalog import METRICS

    bounds = HealthConfig().alarms
    text = ["# Metrics", "", "A line of `metrics.jsonl` is one step: `{\"stage\": \"train\", \"step\": 12, ...}`.",
            "Names that begin with `time/`, `memory/`, `speed/` or `compile/` depend on the machine. All others repeat",
            "exactly when a run is repeated on the same backend. `*` stands for any characters. An alarm's bounds are",
            "those of the field `health.alarms`. A metric that nothing reads is there for you: in `metrics.jsonl`,",
            "TensorBoard and trackers.",
            "",
            "| metric | unit | range | meaning | healthy | alarm outside | chart in the report | read by |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    text += [_row(f"`{metric.name}`", metric.unit, _range(metric.low, metric.high), metric.help, metric.healthy,
                  _bounds(bounds.get(metric.name)), metric.chart, ", ".join(metric.readers)) for metric in METRICS]
    return "\n".join(text) + "\n"


def _range(low, high) -> str:
    """0 to 1, from 0, up to 1, or nothing."""
    if low is None or high is None:
        return f"from {low:g}" if low is not None else f"up to {high:g}" if high is not None else ""
    return f"{low:g} to {high:g}"


def _bounds(limits) -> str:
    if limits is None:
        return ""
    low, high = limits
    return " ".join(part for part in (f"below {low:g}" if low is not None else "", f"above {high:g}" if high is not None
                                      else "") if part)


def registries_page() -> str:
    """What each registry holds: the names that a config may use, with unit and help from their decorators."""
    from zsjax.evaluation.baselines import METHODS
    from zsjax.monitor.health import ALARMS
    from zsjax.rewards.terms import TERMS
    from zsjax.rl.algorithms import PRESETS
    from zsjax.rl.credit import ADVANTAGES
    from zsjax.rl.curricula import CURRICULA
    from zsjax.rl.objective import LOSSES, OBJECTIVE_TERMS
    from zsjax.search import registry

    text = ["# Names in configs", "",
            "Each field below takes a name of its table or `package.module:function`. A decorator adds your own.", ""]
    for title, field, names in (
            ("Reward terms", "reward.terms", TERMS), ("Advantages", "algorithm.advantage", ADVANTAGES),
            ("Losses", "algorithm.loss", LOSSES), ("Terms of the objective", "algorithm.terms", OBJECTIVE_TERMS),
            ("Curricula", "curriculum.schedule", CURRICULA), ("Alarms", "health.alarms", ALARMS)):
        text += [f"## {title}", "", f"Field `{field}`.", "", "| name | unit | meaning |", "| --- | --- | --- |"]
        text += [_row(f"`{name}`", names.entry(name).unit, names.entry(name).help) for name in names]
        text.append("")
    text += ["## Search engines", "", "Fields `search.engine` and `search.eval_engine`.", "", registry.table(),
             "## Algorithms", "", "`zsjax.rl.algorithms.preset(NAME)` gives these fields of `algorithm`.", "",
             "| name | fields |", "| --- | --- |"]
    text += [_row(f"`{name}`", ", ".join(f"`{field}={value!r}`" for field, value in fields.items()))
             for name, fields in PRESETS.items()]
    text += ["", "## Baselines", "", "Field `evaluate.baselines`.", "", "| name |", "| --- |",
             *(_row(f"`{name}`") for name in METHODS)]
    return "\n".join(text) + "\n"


def _row(*cells) -> str:
    plain = (str(cell).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") if "`" not in str(cell)
             else str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(plain)} |"


if __name__ == "__main__":
    made = pages()
    if sys.argv[1:] == ["--check"]:
        # Word by word: versions of argparse fold lines in their own ways.
        old = [f"docs/{name}" for name, text in made.items() if (HERE / name).read_text().split() != text.split()]
        sys.exit(f"old, so run python docs/generated.py: {', '.join(old)}" if old else 0)
    for name, text in made.items():
        (HERE / name).write_text(text)
