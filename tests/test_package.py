"""Wheel and source distribution build, hold every file of the package, and run from a fresh environment."""

import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest

import zsjax

ROOT = pathlib.Path(__file__).parents[1]


def run(command, cwd, **environment):
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=600,
                          env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


def test_the_version_is_one():
    said = {"CHANGELOG.md": r"^## (\S+)$", "CITATION.cff": r"^version: (\S+)$"}
    assert {re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)[1] for name, pattern in said.items()} == {
        zsjax.__version__}


def test_experiments_are_built_with_their_data(tmp_path):
    pytest.importorskip("setuptools")
    run([sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", tmp_path], cwd=ROOT)
    made = {path.relative_to(tmp_path / "zsjax").as_posix() for path in (tmp_path / "zsjax" / "experiments").rglob("*")}
    tracked = run(["git", "ls-files", "experiments/*.py", "experiments/data"], cwd=ROOT).splitlines()
    assert len(tracked) > 10 and {*tracked} <= made


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("build", reason="nothing is built: pip install -e '.[release]'")
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--outdir", out, ROOT], cwd=ROOT)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.mark.slow
def test_both_hold_every_file(built):
    wheel, source = set(zipfile.ZipFile(built[0]).namelist()), tarfile.open(built[1]).getnames()
    source = {name.partition("/")[2] for name in source}
    tracked = run(["git", "ls-files", "zsjax", "experiments"], cwd=ROOT).splitlines()
    assert len(tracked) > 150
    assert not [name for name in tracked if name not in source]
    inside = [name if name.startswith("zsjax/") else f"zsjax/{name}" for name in tracked
              if name.startswith(("zsjax/", "experiments/data/")) or re.fullmatch(r"experiments/\w+\.py", name)]
    assert not [name for name in inside if name not in wheel]
    assert {"zsjax/py.typed", "zsjax/experiments/tiny_world.py",
            "zsjax/experiments/data/search_qa/paragraphs.jsonl.gz"} <= {*inside}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "docs/minimal_loop.py", "launch/install.sh"} <= source


@pytest.mark.slow
def test_the_wheel_answers_a_question_in_a_fresh_environment(built, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    # Dependencies are those of this environment, so that no network is needed; its own .pth files do not count there.
    place = pathlib.Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip())
    (place / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", built[0]], tmp_path)
    assert run([python, "-c", "import zsjax; print(zsjax.__file__)"], tmp_path).startswith(str(place))
    carried = "from zsjax.config import load_experiment; print(load_experiment('experiments/tiny_world.py').name)"
    assert run([python, "-c", carried], tmp_path) == "tiny_world\n"
    command = tmp_path / "venv" / "bin" / "zsjax"
    assert "commands:" in run([command, "--help"], tmp_path)
    said = run([command, "ask", "What is the mother of Lonor Cruwick?"], tmp_path, JAX_PLATFORMS="cpu", XLA_FLAGS="")
    assert "<search>" in said and "answer" in said
