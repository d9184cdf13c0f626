"""Inputs as folders: what reads each kind, and `saved_inputs`, those that failed once.

saved_inputs/KIND-NUMBER has the files that differ from a valid input of that kind.
"""

import pathlib
import shutil
from collections.abc import Callable

import httpx
import numpy as np
from hostile_files import run_folder

from tests.raw_replies import started
from zsjax import report
from zsjax.config import from_json
from zsjax.data import load_corpus, load_questions, load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.data.row_files import read_rows
from zsjax.data.simulator_rows import simulator_row
from zsjax.models.checkpoints.gguf import import_gguf
from zsjax.models.checkpoints.hf import load_hf
from zsjax.report.view_server import TrajectoryServer
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.search import BM25
from zsjax.search.simulator.prompt import SimulatorTemplate

SAVED = pathlib.Path(__file__).parent / "saved_inputs"
WHOLE, SHARDS = "model.safetensors", "model.safetensors.index.json"


def template(folder):
    policy = folder / "t.json"
    return PolicyTemplate.load(policy) if policy.exists() else SimulatorTemplate.load(folder / "t.txt")


def rows(folder):
    (path,) = folder.iterdir()
    return (load_questions if path.name.startswith("questions") else load_corpus)(path)


def simulator_rows(folder):
    return [simulator_row(row, where) for row, where in read_rows(str(folder / "rows.jsonl"))]


def index(folder):
    return BM25.load(folder / "index").search(["ab cd"], k=2)


def tokenizer(folder):
    found = load_tokenizer(folder)
    found.encode_text("Who wrote <|im_end|> it? \ud83d")
    found.encode_prompt("k")
    return len(found.token_table)


def checkpoint(folder):
    return np.asarray(load_hf(folder)[1]["norm"]).size


def gguf_header(folder):
    return import_gguf(folder / "m.gguf", folder / "out")


def config_file(folder):
    return from_json((folder / "config.json").read_text("utf-8", "replace"))


def report_of(folder):
    text = report.write(folder).read_text()
    assert "</html>" in text and "\x1b" not in text
    return text


def viewer(folder, odd=""):
    """odd: fields of a request, URL-encoded."""
    with TrajectoryServer([folder]) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        started(server)
        ids = [f"trajectories/train_000001:{i}" for i in range(2)]
        for path in ["/api/runs", "/api/list", f"/api/list?{odd}", *(f"/api/trajectory?id={id}" for id in ids)]:
            reply = client.get(path)
            assert reply.status_code in (200, 400), (path, reply.text)
            assert isinstance(reply.json(), list | dict)
        server.shutdown()


READERS: dict[str, Callable] = {
    "template": template, "rows": rows, "simulator_rows": simulator_rows, "index": index, "tokenizer": tokenizer,
    "checkpoint": checkpoint, "gguf_header": gguf_header, "config_file": config_file, "run_folder": report_of,
    "viewer": viewer}


def restore(name: str, folder: pathlib.Path) -> str:
    """Makes a saved input in an empty folder; its kind."""
    kind = name.rpartition("-")[0]
    if kind in ("tokenizer", "checkpoint"):
        shutil.copytree(asset_path("asset:real/tokenizer" if kind == "tokenizer" else "asset:real/policy"), folder,
                        dirs_exist_ok=True)
    if kind in ("run_folder", "viewer"):
        run_folder(folder)
    shutil.copytree(SAVED / name, folder, dirs_exist_ok=True)
    if (folder / SHARDS).exists():
        (folder / WHOLE).rename(folder / "model-00001-of-00001.safetensors")
    return kind
