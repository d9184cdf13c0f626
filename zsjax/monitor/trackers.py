"""Metrics in Weights & Biases and MLflow, beside metrics.jsonl and TensorBoard. The packages are imported only when named.

Keys and addresses come from the environment, where the packages themselves look for them. A resumed run goes on in the
same tracked run: its id is in WORKDIR/trackers.json. Steps that are done again are logged again.
"""

import contextlib
import importlib
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from zsjax.errors import InputError, read_json
from zsjax.parallel.files import write_json
from zsjax.search.addresses import is_secret, shown_text

SHORTEST_SECRET = 8  # characters; shorter values are not hidden: XAUTHORITY, say, is not a secret
_FOREIGN = re.compile(r"[^\w\-. /]")  # what MLflow refuses in a name


class Wandb:
    """Each stage has a step of its own, named STAGE/step."""

    def __init__(self, module, run_id: str | None, *, name: str, workdir: pathlib.Path, config: Mapping):
        self._run = module.init(project="zsjax", name=name, id=run_id, resume="allow", dir=str(workdir), config=dict(config))
        self.run_id, self._stages = self._run.id, set()

    def write(self, stage: str, step: int, values: Mapping[str, float]):
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/{metric}": value for metric, value in values.items()} | {f"{stage}/step": step})

    def close(self):
        self._run.finish()


class MLflow:
    """Metrics are named STAGE/NAME; the config is a JSON artifact."""

    def __init__(self, module, run_id: str | None, *, name: str, workdir: pathlib.Path, config: Mapping):
        self._mlflow = module
        module.set_experiment("zsjax")
        run = module.start_run(run_id=run_id, run_name=None if run_id else name)
        self.run_id = run.info.run_id
        if run_id is None:
            module.log_dict(dict(config), "config.json")

    def write(self, stage: str, step: int, values: Mapping[str, float]):
        self._mlflow.log_metrics({_FOREIGN.sub("_", f"{stage}/{metric}"): float(value) for metric, value in values.items()},
                                 step=step)

    def close(self):
        self._mlflow.end_run()


TRACKERS = {"wandb": Wandb, "mlflow": MLflow}


class Trackers:
    """The trackers of a run. One that fails is named in the log and left out from there on: no run ends by it."""

    def __init__(self, modules: Mapping, workdir: pathlib.Path, *, name: str, config: Mapping):
        """Opens them.

        Args:
          modules: the packages by their names in `TRACKERS`, see `imported`.
          workdir: where trackers.json keeps the tracked runs' ids.
          name: of the run.
          config: JSON values that are kept with it.
        """
        path = pathlib.Path(workdir) / "trackers.json"
        ids = read_json(path, "remove it to track the run anew", dict) if path.exists() else {}
        self._open = {}
        for each, module in modules.items():
            with self._or_left_out(each):
                self._open[each] = TRACKERS[each](module, ids.get(each), name=name, workdir=path.parent, config=config)
        if self._open:
            write_json(path, ids | {each: tracker.run_id for each, tracker in self._open.items()})

    def write(self, line: Mapping):
        """Logs the numbers of a line of metrics.jsonl."""
        values = {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}
        for name, tracker in list(self._open.items()):
            with self._or_left_out(name):
                tracker.write(line["stage"], line["step"], values)

    def close(self):
        for name, tracker in list(self._open.items()):
            with self._or_left_out(name):
                tracker.close()
        self._open = {}

    @contextlib.contextmanager
    def _or_left_out(self, name):
        try:
            yield
        except Exception as error:  # the packages' own kinds, and the network's
            secrets = [value for key, value in os.environ.items() if is_secret(key) and len(value) >= SHORTEST_SECRET]
            logging.warning("%s failed and is left out from now on: %s", name, shown_text(str(error), secrets, 300))
            self._open.pop(name, None)


def imported(names: Sequence[str]) -> dict:
    """The packages by name. Raises InputError for one that is not installed."""
    modules = {}
    for name in names:
        try:
            modules[name] = importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"trackers: the package {name!r} is not installed; pip install {name}, or leave it out"
                             ) from error
    return modules
