"""The evaluations that a run's config asks for: policies, faults of the engine, baselines. Each is played on demand."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax

from zsjax.evaluate import play_samples, random_document_baseline
from zsjax.evaluation import kept_evaluations
from zsjax.evaluation.baselines import METHODS, OWN_PROMPT, Setting, num_episodes
from zsjax.evaluation.kept_evaluations import Evaluation, Subject
from zsjax.monitor import costs
from zsjax.parallel import mesh
from zsjax.rollout import make_rollout
from zsjax.run import build
from zsjax.run.stages.context import Run
from zsjax.run.stages.evaluation_settings import model_fingerprint, settings_of, source_of


@dataclasses.dataclass(frozen=True)
class EvaluationPart:
    """One evaluation of the config. play: () -> (its records, its lines of metrics)."""

    wanted: Evaluation
    play: Callable[[], tuple[list[dict], list[dict]]]


class Parts:
    """The evaluations of a run's config. Models and engines are loaded when a part is played."""

    def __init__(self, run: Run):
        self.run, self.config, self.kept = run, run.config, kept_evaluations.Kept(run.workdir)
        self.questions = run.evaluation_questions
        self.how = settings_of(run, self.questions)
        self._objects = {}

    def all(self) -> Iterator[EvaluationPart]:
        """Before and after training, the same with faults of the engine, and the baselines."""
        config, options = self.config, self.config.evaluate
        base = self._subject(kept_evaluations.BASE, "models/warm_start", "models/base")
        policies = [("before", base)]
        if build.checkpoint_exists(self.run.path("models/policy")):
            policies.append(("after", self._subject(kept_evaluations.TRAINED, "models/policy")))
        faults = [("", "", {})]
        if options.drop_best:
            faults.append(("_lossy", f", best document lost in {options.drop_best:.0%} of searches",
                           {"drop_best": options.drop_best}))
        if options.misinformation:
            faults.append(("_misinformed", f", best document wrong in {options.misinformation:.0%} of searches",
                           {"misinformation": options.misinformation}))
        for part, suffix, fault in faults:
            for name, subject in policies:
                title = f"{name} training{suffix}"
                yield self._part(f"{name}{part}", title, subject, functools.partial(self.play, title, subject, fault),
                                 temperature=options.temperature, samples=options.samples, **({"drop_best": 0.0} | fault))
        for name in options.baselines:
            yield self._baseline(name, base, last=policies[-1][1])
        if config.data.eval.startswith(build.TINY_WORLD) and not config.data.benchmarks:
            yield self._part("random_document", "random retrieved document", Subject(kept_evaluations.NO_POLICY, "", ""),
                             self._play_random_document)

    def _baseline(self, name, base, last) -> EvaluationPart:
        """A baseline of the last policy, or of the one that the run begins with (evaluate.baseline_model)."""
        config, player = self.config, last
        if config.evaluate.baseline_model == "base":
            player = base if name in OWN_PROMPT else self._subject(kept_evaluations.BASE, "models/base")
        subject, settings = player, {"rollout.temperature": config.rollout.temperature}
        settings |= {field: value for field, value in (
            ("prompts.baseline_examples", config.prompts.baseline_examples),
            ("evaluate.baseline_turn_tokens", config.evaluate.baseline_turn_tokens)) if value}
        if name in ("best_of_n", "tree_search"):
            settings |= {"samples": config.evaluate.baseline_samples}
        if name == "trajectory_sft":
            subject, settings = base, settings | {
                "train": source_of(config, config.data.train), "corpus": source_of(config, config.data.corpus),
                "episodes": num_episodes(config), "trajectory_sft": dataclasses.asdict(config.trajectory_sft)}
        wanted = self._wanted(f"baseline_{name}", f"baseline {name}", subject, **settings)
        return EvaluationPart(wanted, functools.partial(self.play_baseline, name, player, wanted.name))

    def _part(self, part, title, subject, play, **more):
        return EvaluationPart(self._wanted(part, title, subject, **more), play)

    def _wanted(self, part, title, subject, **more) -> Evaluation:
        return Evaluation(part, title, 0, subject, self.how | more)

    def _subject(self, role, *made) -> Subject:
        """The policy of the first folder that exists, else of policy.init."""
        config = self.config.policy
        for name in made:
            if build.checkpoint_exists(path := self.run.path(name)):
                return Subject(role, name, kept_evaluations.fingerprint(path))
        return Subject(role, config.init, model_fingerprint(config, self.config.seed))

    def _once(self, *name, make):
        if name not in self._objects:
            self._objects[name] = make()
        return self._objects[name]

    def _policy(self, subject):
        made = [subject.source.removeprefix("models/")] if subject.source.startswith("models/") else []
        return self._once(subject.fingerprint, make=lambda: self.run.policy(*made, rules=mesh.DECODE_RULES))

    def _engine(self, **fault):
        """The engine of evaluations; fault: of `Run.engine`."""
        return self._once("engine", *fault.items(), make=lambda: self.run.engine(
            self.config.search.eval_engine, self.config.data.eval_corpus, **(fault or {"spread": True})))

    def _rollout(self, model, fault):
        engine = self._engine(**fault)
        return self._once(model, *fault.items(), make=lambda: self._metered(
            make_rollout(model, engine, self.run.tokenizer, self.config, self.run.mesh), engine))

    def _metered(self, rollout, engine):
        return costs.Meter(rollout, engine, devices=mesh.device_count(self.run.mesh, self.config.mesh))

    def play(self, title, subject, fault) -> tuple[list[dict], list[dict]]:
        """An evaluation of a policy: its records and its lines of metrics. fault: of `Run.engine`."""
        options, questions = self.config.evaluate, self.questions
        model, params = self._policy(subject)
        rollout = self._rollout(model, fault)
        with self.run.writer.track(f"evaluate {title}", len(questions) * options.samples) as advance:
            def progress(batches):
                for batch in batches:
                    yield batch
                    advance(min(options.batch_rows, len(questions) - batch))

            records = play_samples(
                rollout, params, questions, key=jax.random.key(self.config.seed), samples=options.samples,
                progress=progress, batch_rows=options.batch_rows, temperature=options.temperature)
        return records, [rollout.take()]

    def play_baseline(self, name, subject, evaluation) -> tuple[list[dict], list[dict]]:
        """As `play`, by a method of zsjax.evaluation.baselines. evaluation: its name, for checkpoints of its own."""
        config, run, meters = self.config, self.run, []

        def meter(rollout, engine):
            meters.append(self._metered(rollout, engine))
            return meters[-1]

        model, params = self._policy(subject)
        setting = Setting(
            config, model, params, run.tokenizer, self._engine(), self.questions, jax.random.key(config.seed), meter,
            run.mesh, train_questions=lambda: run.train_questions,
            train_engine=lambda: run.engine(config.search.eval_engine, config.data.corpus, spread=True),
            base_params=lambda: run.start_policy(mesh.TRAIN_RULES)[1], writer=run.writer,
            directory=run.path("checkpoints") / evaluation)
        return METHODS[name](setting), [{"baseline": name} | used.take() for used in meters]

    def _play_random_document(self):
        from zsjax.tiny_world.world import answer_of

        return random_document_baseline(self._engine(), self.questions, answer_of, k=self.config.search.num_documents,
                                        seed=self.config.seed), []
