"""Campaign of hostile input: whatever a file, a reply or a request holds, it is a value or one line that says what is wrong.

    ZSJAX_CAMPAIGN_CASES=10000 ZSJAX_CAMPAIGN_FOLDER=runs/campaigns python -m pytest tests/campaigns/test_input.py -s

A case is a valid file of one kind with up to three places changed. It may end in a value or in a `UserError` of one line
that names the file. It may take no more than `MOST_SECONDS`, and all cases together no more than `MOST_MEMORY`.
"""

import http.server
import json
import logging
import pathlib
import resource
import shutil
import tempfile
import time
import urllib.parse

import httpx
import numpy as np
import pytest
from hostile_files import (
    CHAT,
    DOCUMENTS,
    EVALUATION,
    GATES,
    KEPT,
    METRICS,
    PROMPT,
    QUESTIONS,
    REQUEST,
    RETRIEVED,
    SIMULATOR_ROWS,
    TEMPLATE,
    TRAJECTORY,
    WEB,
    gguf_file,
    json_lines,
    row_file,
    run_folder,
)

from tests.campaigns.campaign import Case, cases_of, run_campaign
from tests.mutations import ODD, damaged, json_bytes, mutated
from tests.raw_replies import Raw, started
from zsjax import report
from zsjax.config import Config, from_json, resolve, to_json
from zsjax.config.declare import leaves
from zsjax.config.experiments import load_experiment
from zsjax.data import load_corpus, load_questions, load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.data.row_files import read_rows
from zsjax.data.simulator_rows import simulator_row
from zsjax.errors import ConfigError, UserError
from zsjax.models.checkpoints.gguf import import_gguf
from zsjax.models.checkpoints.hf import load_hf
from zsjax.report.view_server import TrajectoryServer
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.search import BM25, ChatSimulator, Document, Failed, HttpRetriever, Limits, SearchContext, SerpApi
from zsjax.search.server import RetrievalServer
from zsjax.search.simulator.prompt import SimulatorTemplate
from zsjax.search.transport import FAILURES
from zsjax.types import Question

MOST_SECONDS = 20  # of a case; a loaded machine needs 1
MOST_MEMORY = 1 << 30  # bytes beyond what the process held before the first case
LIMITS = Limits(timeout=5, retries=0, breaker_failures=0, max_bytes=1 << 20)
# Cases that failed once: names and texts of thousands of characters, objects for numbers, brackets without end, and
# files of a run in another form.
SAVED = [Case(*case) for case in (
    ("tokenizer", 301), ("checkpoint", 512), ("checkpoint", 1310), ("checkpoint", 2430), ("config_file", 911),
    ("config_file", 2227), ("template", 2746), ("index", 6), ("index", 48), ("index", 62), ("run_folder", 26),
    ("run_folder", 82), ("run_folder", 1762), ("run_folder", 2686), ("run_folder", 6830),
    ("viewer", 13), ("viewer", 545), ("viewer", 741))]


class Echo:
    def search(self, queries, contexts, *, k):
        return [[Document(query, query)] for query in queries]


class Kinds:
    """A method for each kind of input: (draw, an empty folder) -> what was read. It raises what zsjax raises."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.fields = folder, sorted(leaves(Config))
        self.experiment = load_experiment("experiments/tiny_world.py:smoke")
        self.config = to_json(resolve(self.experiment))
        self.header = gguf_file(folder / "valid.gguf")
        self.gguf = (folder / "valid.gguf").read_bytes()
        BM25.from_documents(DOCUMENTS[:2]).save(folder / "index")
        self.raw = started(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Raw))
        self.server = started(RetrievalServer(Echo(), port=0))
        url = f"http://127.0.0.1:{self.raw.server_address[1]}/x"
        self.engines = [(RETRIEVED, HttpRetriever(url, limits=LIMITS)), (WEB, SerpApi(url=url, limits=LIMITS, price=1.0)),
                        (CHAT, ChatSimulator(url, model="m", template=SimulatorTemplate.load("prompted"), limits=LIMITS))]
        self.client = httpx.Client(timeout=5)

    def close(self):
        self.client.close()
        for server in (self.raw, self.server):
            server.shutdown()
            server.server_close()

    def config_fields(self, draw, folder):
        overrides = {draw.choice(self.fields): str(draw.choice(ODD)) for _ in range(draw.randint(0, 2))}
        tree = mutated(json.loads(self.config), draw) if draw.random() < 0.7 else self.experiment
        return to_json(resolve(tree, overrides, files=draw.random() < 0.5))

    def config_file(self, draw, folder):
        text = json_bytes(mutated(json.loads(self.config), draw), draw).decode("utf-8", "replace")
        return from_json(text)

    def template(self, draw, folder):
        load, path = draw.choice([(PolicyTemplate.load, folder / "t.json"), (SimulatorTemplate.load, folder / "t.txt")])
        text = json_bytes(mutated(TEMPLATE, draw, least=0), draw)
        path.write_bytes(text if path.suffix == ".json" else damaged(PROMPT, draw))
        return load(path)

    def rows(self, draw, folder):
        load, rows = draw.choice([(load_questions, QUESTIONS), (load_corpus, DOCUMENTS)])
        path = folder / f"rows{draw.choice(['.jsonl', '.jsonl', '.jsonl.gz', '.parquet'])}"
        try:
            data = row_file([mutated(draw.choice(rows), draw) for _ in range(draw.randint(1, 3))], path.name[4:])
        except (ValueError, AttributeError):
            data = row_file(rows[:1], path.name[4:])
        path.write_bytes(damaged(data, draw) if draw.random() < 0.4 else data)
        found = load(path)
        json.dumps([vars(item) for item in found], ensure_ascii=False).encode()
        return found

    def simulator_rows(self, draw, folder):
        (folder / "rows.jsonl").write_bytes(json_lines([mutated(SIMULATOR_ROWS[0], draw, least=0)]))
        return [simulator_row(row, where) for row, where in read_rows(str(folder / "rows.jsonl"))]

    def index(self, draw, folder):
        shutil.copytree(self.folder / "index", folder / "index")
        path = draw.choice(sorted((folder / "index").iterdir()))
        data = path.read_bytes()
        if path.suffix == ".json" and draw.random() < 0.5:
            data = json.dumps(mutated(json.loads(data), draw)).encode()
        path.write_bytes(damaged(data, draw))
        return BM25.load(folder / "index").search(["ab cd"], k=2)

    def tokenizer(self, draw, folder):
        shutil.copytree(asset_path("asset:real/tokenizer"), folder, dirs_exist_ok=True)
        file = folder / draw.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
        data = file.read_bytes()
        if draw.random() < 0.8:
            spec = json.loads(data)
            if "model" in spec:  # otherwise few of its tokens would be drawn
                spec["model"]["vocab"] = dict(list(spec["model"]["vocab"].items())[:256])
                spec["model"]["merges"] = []
            data = json.dumps(mutated(spec, draw)).encode()
        file.write_bytes(damaged(data, draw) if draw.random() < 0.3 else data)
        tokenizer = load_tokenizer(folder)
        tokenizer.encode_text("Who wrote <|im_end|> it? \ud83d")
        tokenizer.encode_prompt("k")
        return len(tokenizer.token_table)

    def checkpoint(self, draw, folder):
        shutil.copytree(asset_path("asset:real/policy"), folder, dirs_exist_ok=True)
        weights, config = folder / "model.safetensors", folder / "config.json"
        what, data = draw.choice(["config", "header", "header bytes", "index", "weights"]), weights.read_bytes()
        size = int.from_bytes(data[:8], "little")
        if what == "config":
            config.write_bytes(json_bytes(mutated(json.loads(config.read_text()), draw, least=0, most=2), draw))
        elif what == "header":
            header = json.dumps(mutated(json.loads(data[8:8 + size]), draw)).encode()
            weights.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size:])
        elif what == "header bytes":
            weights.write_bytes(damaged(data[:8 + size], draw) + data[8 + size:])
        elif what == "index":
            weights.rename(folder / "model-00001-of-00001.safetensors")
            names = ["model.embed_tokens.weight", "model.norm.weight"]
            index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
            (folder / "model.safetensors.index.json").write_bytes(json_bytes(mutated(index, draw), draw))
        else:
            weights.write_bytes(data[:draw.randrange(len(data))] + data[draw.randrange(len(data)):])
        return np.asarray(load_hf(folder)[1]["norm"]).size

    def gguf_header(self, draw, folder):
        header = self.gguf[:self.header]
        for _ in range(draw.randint(1, 2)):
            header = damaged(header, draw)
        (folder / "m.gguf").write_bytes(header + self.gguf[self.header:])
        return import_gguf(folder / "m.gguf", folder / "out")

    def reply(self, draw, folder):
        reply, engine = draw.choice(self.engines)
        self.raw.body = json_bytes(mutated(reply, draw), draw)
        # Paid searches are kept by their query: each case asks its own.
        queries = [f"{name} {draw.random()}" for name in "ab"]
        found = engine.search(queries, [SearchContext(Question("1", "who?", ("x",)))] * 2, k=3)
        assert len(found) == 2, self.raw.body
        for documents in found:
            assert not isinstance(documents, Failed) or documents.kind in FAILURES and not documents, self.raw.body
            assert getattr(documents, "kind", "") != "timeout", self.raw.body
            "".join(f"{document.title}{document.text}" for document in documents).encode()  # no lone surrogates
        return found

    def request(self, draw, folder):
        body = json_bytes(mutated(REQUEST, draw), draw)
        reply = self.client.post(self.server.url, content=body)
        assert reply.status_code in (200, 400) and isinstance(
            reply.json()["result" if reply.status_code == 200 else "detail"], list | str), body
        return reply

    def run_folder(self, draw, folder):
        path = folder / draw.choice(run_folder(folder))
        valid = {"metrics": METRICS, "train_000001": [TRAJECTORY] * 2, "after": [TRAJECTORY], "evaluation": EVALUATION,
                 "gates": GATES, "before-12345678": KEPT, "config": json.loads(self.config)}[path.stem]
        value = mutated(valid, draw)
        data = json_lines(value) if path.suffix == ".jsonl" and isinstance(value, list) else json.dumps(value).encode()
        path.write_bytes(damaged(data, draw) if draw.random() < 0.25 else data)
        text = report.write(folder).read_text()
        assert "</html>" in text and "\x1b" not in text
        return text

    def viewer(self, draw, folder):
        run_folder(folder)
        data = json_lines([mutated(TRAJECTORY, draw, most=4) for _ in range(3)])
        (folder / "trajectories/train_000001.jsonl").write_bytes(damaged(data, draw) if draw.random() < 0.3 else data)
        with TrajectoryServer([folder]) as server:
            started(server)
            ids = [f"trajectories/train_000001:{i}" for i in range(2)]
            asked = {"first": draw.choice(ODD), "count": draw.choice(ODD), "low": draw.choice(ODD), "text": draw.choice(ODD)}
            odd = urllib.parse.urlencode({name: str(value)[:200] for name, value in asked.items() if draw.random() < 0.5},
                                         errors="replace")
            paths = ["/api/runs", "/api/list", f"/api/list?{odd}", *(f"/api/trajectory?id={id}" for id in ids)]
            for path in paths:
                reply = self.client.get(server.url.rstrip("/") + path)
                assert reply.status_code in (200, 400), (path, reply.text)
                assert isinstance(reply.json(), list | dict)
            server.shutdown()


KINDS = ("config_fields", "config_file", "template", "rows", "rows", "simulator_rows", "index", "tokenizer", "checkpoint",
         "gguf_header", "reply", "request", "run_folder", "viewer")


def one_line(error, folder):
    text = str(error)
    if isinstance(error, ConfigError):
        assert error.problems and len(text.splitlines()) == 1 + len(error.problems), text
        return
    assert "\n" not in text.strip() and len(text) < 1500 and "Traceback" not in text, text


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    pytest.importorskip("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERPAPI_API_KEY", "k")
        logging.getLogger().handlers.clear()
        made = Kinds(tmp_path_factory.mktemp("valid"))
        yield made
        made.close()


def checked(kinds, caplog):
    """A function that runs one case."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    def check(case):
        with tempfile.TemporaryDirectory() as folder:
            begun, outcome = time.perf_counter(), "value"
            caplog.clear()
            try:
                getattr(kinds, case.kind)(case.draw, pathlib.Path(folder))
            except UserError as error:
                one_line(error, folder)
                outcome = "refused"
        assert time.perf_counter() - begun < MOST_SECONDS
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
        assert grown < MOST_MEMORY, f"{grown >> 20} MB more than before"
        shown = [record for record in caplog.records if record.exc_info]
        assert not shown, f"a traceback in the log: {shown[0].exc_info[1]!r}"
        return {outcome: 1, f"{case.kind} {outcome}": 1}

    return check


def test_hostile_input(kinds, caplog):
    caplog.set_level(logging.WARNING)
    summary = run_campaign("input", [*SAVED, *cases_of(KINDS, default=140)], checked(kinds, caplog),
                           most_seconds=MOST_SECONDS, most_memory_mb=MOST_MEMORY >> 20)
    assert not summary["failures"], summary["line"]
    counts = summary["counts"]
    assert all(counts.get(f"{kind} value") or counts.get(f"{kind} refused") for kind in KINDS)
    assert counts["value"] > summary["cases"] / 10 and counts["refused"] > summary["cases"] / 10
