"""The chat simulator against a real server: `transformers serve` with the small carried checkpoint."""

import json
import shutil
import socket
import subprocess
import sys
import time

import httpx
import pytest

from zsjax.data.assets import asset_path
from zsjax.search import ChatSimulator, Failed, Limits, SearchContext
from zsjax.search.simulator.prompt import SimulatorTemplate
from zsjax.types import Question

CONTEXT = SearchContext(Question("1", "Who wrote Emma?", ("Jane Austen",)))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(url, model's name)"""
    for package in ("torch", "fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install 'zsjax[serving]' torch")
    folder = tmp_path_factory.mktemp("model")
    for part in ("real/tokenizer", "real/policy"):
        shutil.copytree(asset_path(f"asset:{part}"), folder, dirs_exist_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.setdefault("chat_template", "{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1", "--port",
               str(port), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail(f"the server ended: {process.stdout.read()[-2000:]}")
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_real_server_answers_and_a_dead_one_is_a_failure(server):
    url, model = server
    template = SimulatorTemplate.load("default")
    limits = Limits(timeout=60, retries=0)
    engine = ChatSimulator(url, model=model, template=template, num_documents=2, temperature=1.0, limits=limits)
    found = engine.search(["emma author", "emma book"], [CONTEXT, CONTEXT], k=2)
    assert not any(isinstance(documents, Failed) for documents in found), [documents.kind for documents in found]
    assert any(document.text for documents in found for document in documents)  # whatever they say
    assert engine.counters["requests"] == engine.counters["attempts"] == 2
    wrong = ChatSimulator(url, model="/no/such/model", template=template, limits=limits)
    assert isinstance(wrong.search(["q"], [CONTEXT], k=2)[0], Failed)
