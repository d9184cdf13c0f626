"""The context of a run's stages: its config, its folder, and objects that are built once."""

import functools
import pathlib

import jax

from zsjax.config import Config
from zsjax.errors import InputError, UserError, read_json
from zsjax.monitor.writer import Writer
from zsjax.parallel import hosts
from zsjax.parallel.files import write_json
from zsjax.parallel.mesh import DECODE_RULES, local_mesh, make_mesh, simulator_mesh
from zsjax.run import build, checksums
from zsjax.search.simulator.simulator import Simulator
from zsjax.types import Question


class GateFailed(UserError):
    """A model is not good enough for the next stage. The message names the measure, its value and the bound."""

    exit_code = 1


class Run:
    """A run's config and folder, and objects that are built once, at their first use."""

    def __init__(self, config: Config, workdir: pathlib.Path, writer: Writer, config_json: str):
        self.config, self.workdir, self.writer, self.config_json = config, workdir, writer, config_json

    def path(self, name: str) -> pathlib.Path:
        return self.workdir / name

    @functools.cached_property
    def tokenizer(self):
        return build.tokenizer(self.config)

    @functools.cached_property
    def mesh(self):
        return make_mesh(self.config.mesh)

    @functools.cached_property
    def train_questions(self) -> list[Question]:
        """Of config.data.train, for reinforcement. Like those of the other properties, they can all be played."""
        return self._playable(build.reinforced_questions(self.config), "train")

    @functools.cached_property
    def supervised_questions(self) -> list[Question]:
        """Of config.data.train, for what is learned before reinforcement."""
        return self._playable(build.supervised_questions(self.config), "train")

    @functools.cached_property
    def watched_questions(self) -> list[Question]:
        """Of config.data.eval, for the evaluations in training."""
        config = self.config
        return self._playable(build.questions(config, config.data.eval, config.train.eval_questions), "eval")

    @functools.cached_property
    def evaluation_questions(self) -> list[Question]:
        """Of every benchmark, or of config.data.eval."""
        return self._playable(build.benchmarks(self.config), "benchmarks" if self.config.data.benchmarks else "eval",
                              baselines=self.config.evaluate.baselines)

    def _playable(self, questions, field, **options):
        source = f"data.{field} = {getattr(self.config.data, field)!r}"
        return build.playable(self.config, questions, source, self.tokenizer, **options)

    def engine(self, name: str, source: str, *, spread: bool = False, **faults):
        """The engine `name` over the corpus `source`.

        spread: as of `simulator`. faults: drop_best or misinformation, see `build.engine`.
        """
        def simulator():
            return build.frozen(self.config.simulator, self.simulator("simulator", "simulator_base", spread=spread))

        return build.engine(name, self.config, source, workdir=self.workdir, simulator=simulator, **faults)

    def policy(self, *names: str, rules=None):
        """(DecoderConfig, params) of the first models/NAME that exists, else of config.policy.init.

        rules: how parameters are sharded over the run's mesh; None loads them onto one device.
        """
        return self._model(self.config.policy, self.config.seed, names, self.mesh if rules else None, rules)

    def start_policy(self, rules=None):
        """As `policy`, of the policy that training starts from: after its warm start, else the base."""
        return self.policy("warm_start", "base", rules=rules)

    def simulator(self, *names: str, spread: bool = False, rules=None) -> Simulator:
        """The simulator of the first models/NAME that exists, else of config.simulator.init.

        spread: loads its parameters onto the devices of this host that run it in rollouts on the mesh.
        rules: as of `policy`, without spread.
        """
        mesh = self.mesh if rules else None
        if spread:
            mesh, rules = simulator_mesh(self.config.mesh) or local_mesh(self.mesh), DECODE_RULES
        model = self._model(self.config.simulator, self.config.seed + 1, names, mesh, rules)
        return build.simulator(self.config, *model, self.tokenizer)

    def _model(self, config, seed, names, mesh, rules):
        made = [self.path("models") / name for name in names]
        path = next((path for path in made if build.checkpoint_exists(path)), None)
        if path is not None:
            checksums.check(self.workdir, inside=f"models/{path.name}")
        return build.model(config, self.tokenizer, seed=seed, path=path, mesh=mesh, rules=rules)

    def save_model(self, name: str, config, params):
        from zsjax.models.checkpoints.hf import save_hf

        params = params if jax.process_count() == 1 else hosts.fetch(params)

        def save():
            save_hf(self.path("models") / name, config, params, tokenizer=self.tokenizer)

        hosts.from_lead(save)

    def done(self, stage: str, output: str) -> bool:
        """Whether the stage's output exists; notes that it is kept."""
        there = hosts.agree(self.path(output).exists())
        if there:
            self.writer.note(f"{stage}: {output} is there already")
        return there

    def write_json(self, name: str, value):
        if hosts.is_lead():
            write_json(self.path(name), value, indent=1)

    def add_gates(self, rows: list[dict], failed: list[str]):
        """Adds rows to gates.json. Raises GateFailed where a gate failed."""
        path = self.path("gates.json")
        fix = "remove it and run the stages with gates again"
        kept = read_json(path, fix, list) if path.exists() else []
        for row in kept:
            if not isinstance(row, dict) or not isinstance(row.get("gate"), str):
                raise InputError(f"{path} holds {row!r:.100}, which is not the row of a gate; {fix}")
        names = {row["gate"] for row in rows}
        self.write_json("gates.json", [row for row in kept if row["gate"] not in names] + rows)
        if failed:
            raise GateFailed("the run stops here, a gate failed:\n  " + "\n  ".join(failed))
