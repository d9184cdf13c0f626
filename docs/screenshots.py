"""Pictures of the report and the viewer, of two small real runs, taken by headless Chromium.

    pip install -e '.[browser]' pillow   and a Chromium: see tests/browser/test_viewer_page.py
    python docs/screenshots.py [FOLDER]  writes start/report.png, reading/curves.png, how_to/viewer.png

The runs lie in FOLDER (build/screenshots) and are made if they are missing: two curricula of the tiny world, against the
carried simulator, a few minutes each on two CPU cores.
"""

import contextlib
import os
import pathlib
import re
import shutil
import sys
import threading

from PIL import Image
from playwright.sync_api import expect, sync_playwright

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
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(300_000)
        expect.set_options(timeout=300_000)
        yield page
        browser.close()


def report(folder: pathlib.Path, table: pathlib.Path, curves: pathlib.Path):
    """The report's first rows of the evaluation, and the first curves of training."""
    with chromium_page(1180, 485) as page:
        page.goto((folder / "report.html").resolve().as_uri())
        page.screenshot(path=table)
        page.set_viewport_size({"width": 1180, "height": 880})
        page.locator("section:has(.charts)").first.evaluate("section => section.scrollIntoView()")
        page.screenshot(path=curves)


def viewer(folders: list[pathlib.Path], picture: pathlib.Path):
    """An episode with a noisy search, beside the other run's on the same question."""
    with TrajectoryServer(folders) as server, chromium_page(1280, 720) as page:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.url)
        page.wait_for_selector("#list li")
        page.select_option("select[name=file]", "trajectories/")
        page.select_option("select[name=noisy]", "yes")
        page.fill("input[name=low]", "1")
        expect(page.locator("#list li").first).to_have_text(re.compile("score 1 .* noisy"))
        page.click("#list li:nth-child(1)")
        page.wait_for_selector("article:nth-of-type(2) .text")
        page.screenshot(path=picture)
        server.shutdown()


def smaller(picture: pathlib.Path):
    """The picture in 96 colours, a third of its bytes."""
    Image.open(picture).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(picture, optimize=True)


def main(folder: str = "build/screenshots"):
    folders = run(pathlib.Path(folder))
    table, curves, episodes = HERE / "start" / "report.png", HERE / "reading" / "curves.png", HERE / "how_to" / "viewer.png"
    report(folders[0], table, curves)
    viewer(folders, episodes)
    for picture in (table, curves, episodes):
        smaller(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
