"""The stages that campaigns disturb, an undisturbed run of each, and what differs between two folders.

Each stage starts from the folder that the undisturbed stages before it left, so that a case costs one stage.
"""

import functools
import json
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence

import numpy as np

from tests.campaigns.campaign import commit
from tests.campaigns.children import Children, Hook
from tests.campaigns.experiment import WORLD
from zsjax.monitor.writer import read_jsonl, without_wall_time
from zsjax.parallel.files import write_json, write_jsonl

EXPERIMENT = pathlib.Path(__file__).parent / "experiment.py"
TAUGHT = ("warm_start", "collect", "tune_simulator", "train", "evaluate")
# Stage -> the stage whose folder it starts from, None for an empty one.
STAGES = {"pretrain": None, "pretrain_simulator": None, "warm_start": None, "collect": "warm_start",
          "tune_simulator": "collect", "train": "tune_simulator", "evaluate": "train", "report": "evaluate",
          "export": "train", "index": None, "import_searches": None}
# All stages, those that cost least or write most more often.
MIX = ("import_searches", "index", "warm_start", "train", "collect", "export", "tune_simulator", "evaluate", "train",
       "report", "warm_start", "index", "pretrain_simulator", "export", "train", "pretrain")
COMMANDS = {"export": "exported", "import_searches": "searches.jsonl"}  # not of a run; each with its result
# Files that no two runs share, by the first part of their path: TensorBoard's names and records hold the time of day.
LEFT_OUT = ("tensorboard",)


def write_inputs(folder: pathlib.Path) -> None:
    """The corpora of the tiny world as files, and a data set of simulator replies."""
    from zsjax.tiny_world import world

    folder.mkdir(parents=True, exist_ok=True)
    for name, of in (("corpus", "tiny_world:train"), ("eval_corpus", "tiny_world:eval")):
        documents = world.documents(world.worlds_of(of, **WORLD))
        write_jsonl(folder / f"{name}.jsonl", [{"id": str(i), "title": document.title, "text": document.text}
                                               for i, document in enumerate(documents)])
    write_jsonl(folder / "replies.jsonl", [
        {"prompt": f"Give {'noisy' if i % 2 else 'useful'} documents.\n"
                   f"Question: Who is number {i}? whose answer is Answer {i}.\nQuery: number {i}",
         "response": f"Doc 1: Number {i} is Answer {i}.\nDoc 2: Number {i + 1} is another."} for i in range(200)])


def build_indexes(corpus: str, workdir: str) -> int:
    """Builds the BM25 and the dense index of a corpus in workdir/indexes; the exit code."""
    from zsjax.config import UserError, resolve
    from zsjax.parallel import stops
    from zsjax.run import build

    try:  # as `zsjax.launch` and a run do
        with stops.handled():
            for name in ("bm25", "dense"):
                config = resolve({"stages": ["report"], "search": {
                    "eval_engine": name, "embedder": "tests.campaigns.runs:embed"}}, check=False)
                build.engine(name, config, corpus, workdir=workdir)
    except UserError as error:
        print(f"error: {error}")
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{stop}")
        return getattr(stop, "exit_code", 130)
    return 0


def embed(texts: Sequence[str]) -> np.ndarray:
    """float32[N, 8]: an embedding that needs no model."""
    return np.array([[text.count(letter) + 1 for letter in "aeioulnr"] for text in texts], np.float32)


class Reference:
    """The undisturbed run of each stage, made at its first use and kept in `folder` for the same commit."""

    def __init__(self, folder: pathlib.Path, children: Children):
        self.folder, self.children = folder, children
        self.files = folder / "files"
        made_by, now = folder / "commit", commit()
        if not made_by.exists() or made_by.read_text() != now or now.endswith("+"):  # other code, other files
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            made_by.write_text(now)
        if not (self.files / "replies.jsonl").exists():
            write_inputs(self.files)

    def command(self, stage: str, workdir: pathlib.Path) -> list[str]:
        """What runs a stage in `workdir`."""
        if stage == "index":
            return ["tests.campaigns.runs:build_indexes", str(self.files / "corpus.jsonl"), str(workdir)]
        if stage == "import_searches":
            return ["import", str(self.files / "replies.jsonl"), str(workdir / "searches.jsonl")]
        if stage == "export":
            return ["export", str(workdir / "exported"), "--workdir", str(workdir)]
        kind = "made" if stage.startswith("pretrain") else "taught"
        names = {"warm_start": "warm-start", "tune_simulator": "tune-simulator"}
        command = [names.get(stage, stage)] if stage in TAUGHT or stage == "report" else ["run"]
        config = ["--config", f"{EXPERIMENT}:{kind}@{self.files}"] if stage != "report" else []
        more = [f"--config.stages={stage}"] if kind == "made" else []
        return [*command, *config, "--workdir", str(workdir), *more]

    def start_folder(self, stage: str, workdir: pathlib.Path) -> None:
        """Makes `workdir` as the stages before `stage` left it."""
        before = STAGES[stage]
        shutil.rmtree(workdir, ignore_errors=True)
        if before is None:
            workdir.mkdir(parents=True)
        else:
            shutil.copytree(self.after(before), workdir)

    def after(self, stage: str) -> pathlib.Path:
        """The folder after the undisturbed stage."""
        self.about(stage)
        return self.folder / stage / "run"

    @functools.cache  # noqa: B019 (a campaign has one)
    def about(self, stage: str) -> Mapping:
        """{"seconds": of the undisturbed stage, "locked": seconds until it held its folder (0 if it never does),
        "moments": ["call before|after path", ...]}."""
        kept, workdir = self.folder / stage, self.folder / stage / "run"
        if (kept / "about.json").exists():
            return json.loads((kept / "about.json").read_text())
        log, moments, locked = kept / "log.txt", kept / "moments.txt", 0.0
        shutil.rmtree(kept, ignore_errors=True)
        for warm in (True, False):  # the first run fills the cache of compiled programs
            self.start_folder(stage, workdir)
            moments.unlink(missing_ok=True)
            start = time.monotonic()
            hook = None if warm else Hook(str(workdir), str(moments))
            pid = self.children.start(self.command(stage, workdir), log, hook=hook)
            while (code := self.children.wait(pid, 0.05)) is None:
                locked = locked or is_held(workdir) * (time.monotonic() - start)
            assert code == 0, f"{stage}: {log.read_text()[-2000:]}"
        about = {"seconds": time.monotonic() - start, "locked": locked, "moments": moments.read_text().splitlines()}
        write_json(kept / "about.json", about)
        return about


def is_held(workdir: pathlib.Path) -> bool:
    """Whether a process has written its name into the folder's lock."""
    return (workdir / ".lock").exists() and bool((workdir / ".lock").read_text())


def differences(found: pathlib.Path, wanted: pathlib.Path) -> list[str]:
    """A line for each file of two run folders whose content differs. A checkpoint of `wanted` that cannot be read is an
    error, or two that fail alike would be equal. Left out: the wall-clock metrics of metrics.jsonl
    (`zsjax.monitor.writer.without_wall_time`), `LEFT_OUT`, and orbax's own records of when a checkpoint was written."""
    names = [_names(folder) for folder in (found, wanted)]
    out = [f"{name} is {'left over' if name in names[0] else 'missing'}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(name for name in names[0] & names[1] if not name.endswith("/")):
        b = _content(wanted / name)
        try:
            out += [f"{name} differs"] if _content(found / name) != b else []
        except UnreadableCheckpoint:
            out.append(f"{name} differs")
    return out


def _names(folder):
    """The files of a run's folder; a checkpoint counts as one."""
    names = set()
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if parts[0] in LEFT_OUT:
            continue
        step = next((i for i, part in enumerate(parts) if parts[0] == "checkpoints" and part.isdigit()), None)
        if step is not None:
            names.add("/".join(parts[:step + 1]))
        elif path.is_file():
            names.add("/".join(parts))
        elif not any(path.iterdir()):
            names.add("/".join(parts) + "/")  # an empty folder
    return names


def _content(path):
    if path.is_dir():
        return _checkpoint(path)
    if path.name == "metrics.jsonl":
        return json.dumps([without_wall_time(row) for row in read_jsonl(path)])
    return path.read_bytes()


class UnreadableCheckpoint(Exception):
    """A checkpoint whose arrays orbax cannot read."""


def _checkpoint(folder):
    """What a checkpoint holds: its arrays, bit for bit, and its JSON."""
    import jax
    import orbax.checkpoint as ocp

    try:
        arrays = ocp.PyTreeCheckpointer().restore(folder / "state")
    except Exception as error:  # whatever a damaged file makes of it
        raise UnreadableCheckpoint(f"{folder}: {error}") from error
    leaves = jax.tree_util.tree_flatten_with_path(arrays)[0]
    return ((folder / "about" / "metadata").read_text(),
            [(jax.tree_util.keystr(name), str(leaf.dtype), np.asarray(leaf).tobytes()) for name, leaf in leaves])
