"""Pictures of the report and the viewer, of two small real runs, taken by headless Chromium.

    pip install -e '.[browser]'          and a Chromium: see tests/browser/test_viewer_page.py
    python docs/screenshots.py [FOLDER]  writes docs/reading/report.png and docs/how_to/viewer.png

The runs lie in FOLDER (build/screenshots) and are made if they are missing: two curricula of the tiny world, against the
carried simulator, a few minutes each on two CPU cores.
"""

import contextlib
import os
import pathlib
import shutil
import sys
import threading

from playwright.sync_api import sync_playwright

from zsjax import launch
from zsjax.report.view_server import TrajectoryServer

HERE = pathlib.Path(__file__).parent
RUNS = {"noise_to_0.5": "noise=0.5", "no_noise": "noise=0.0"}
FIELDS = ("stages=('train','evaluate','report')", "simulator.init=asset:tiny_world/simulator", "data.eval_limit=64",
          "train.steps=24", "train.eval_every=8", "train.trajectories_every=8")


def run(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders of the two runs, which are made where they are missing."""
    made = []
    for name, argument in RUNS.items():
        made.append(folder / name)
        if not (made[-1] / "report.html").exists():
            fields = [f"--config.{field}" for field in FIELDS]
            experiment = f"experiments/tiny_world.py:{argument}"
            if code := launch.main(["run", "--config", experiment, "--workdir", str(made[-1]), *fields]):
                raise SystemExit(code)
    return made


@contextlib.contextmanager
def chromium_page(width: int, height: int):
    """A page of a browser without a window."""
    path = os.environ.get("ZSJAX_CHROMIUM") or shutil.which("chromium-headless-shell") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": width, "height": height})
        browser.close()


def report(folder: pathlib.Path, picture: pathlib.Path):
    """The report's evaluation and its first charts."""
    with chromium_page(1180, 900) as page:
        page.goto((folder / "report.html").resolve().as_uri())
        page.screenshot(path=picture)


def viewer(folders: list[pathlib.Path], picture: pathlib.Path):
    """An episode with a noisy search, beside the other run's on the same question."""
    with TrajectoryServer(folders) as server, chromium_page(1280, 720) as page:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.url)
        page.select_option("select[name=noisy]", "yes")
        page.fill("input[name=low]", "1")
        page.fill("input[name=fewest]", "3")
        page.wait_for_function("document.querySelectorAll('#list li').length > 0")
        page.wait_for_timeout(500)
        page.click("#list li:nth-child(1)")
        page.wait_for_selector("article:nth-of-type(2) .text")
        page.screenshot(path=picture)
        server.shutdown()


def main(folder: str = "build/screenshots"):
    folders = run(pathlib.Path(folder))
    report(folders[0], HERE / "reading" / "report.png")
    viewer(folders, HERE / "how_to" / "viewer.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
