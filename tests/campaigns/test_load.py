"""`serve-corpus` with up to as many clients as it keeps connections of: nothing refused or lost, and memory bounded.

ZSJAX_CAMPAIGN_DOCUMENTS is the number of paragraphs, a million where it is not given; benchmarks/serve_load.py makes them.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.campaigns.campaign import Case, check_all, folder_of
from tests.environment import ROOT, one_device
from zsjax.search.server import CONNECTIONS

CLIENTS = (1, 16, 64, 256, CONNECTIONS)
MEMORY = 1024  # MB of the server's memory, mapped files not counted
SECONDS = 20


@pytest.mark.slow
def test_load(tmp_path_factory):
    folder, documents = folder_of(tmp_path_factory, "load"), int(os.environ.get("ZSJAX_CAMPAIGN_DOCUMENTS", 1_000_000))

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "serve_load.py"), "--folder", str(folder), "--documents",
             str(documents), "--seconds", str(SECONDS), *arguments], env=one_device(), capture_output=True, text=True,
            timeout=3600, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def check(case):
        if "selection" in case.what:
            found = run("--clients", "--selections", case.what["selection"])[-1]
            assert found["requests"]
            return found
        found = run("--selections", "--clients", str(case.what["clients"]))[-1]
        assert found["requests"] and found["refused"] == found["lost"] == 0, found
        assert found["server_anonymous_mb"] < MEMORY, found
        return found

    cases = [Case(f"bm25s_{selection}", 0, {"selection": selection}) for selection in ("numpy", "jax")]
    cases += [Case("clients", clients, {"clients": clients}) for clients in CLIENTS]
    check_all("load", cases, check, documents=documents)
