"""Evaluation of base, trained policy and baselines with the real engine, and the report.

Each evaluation is kept under its policy and its settings (`zsjax.evaluation.kept_evaluations`). The stage makes those of
the config that are missing or in which searches failed. evaluation.json holds the rows of all evaluations of the config.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator

import jax

from zsjax.config import Config
from zsjax.config.declare import leaves
from zsjax.errors import UserError
from zsjax.evaluate import name_of_group, play_samples, random_document_baseline, summarize
from zsjax.evaluation import compare, kept_evaluations
from zsjax.evaluation.baselines import METHODS, OWN_PROMPT, Setting, num_episodes
from zsjax.evaluation.kept_evaluations import Evaluation, Subject
from zsjax.monitor import costs
from zsjax.parallel import hosts, mesh
from zsjax.rollout import make_rollout
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.run import build
from zsjax.run.stages.context import Run
from zsjax.search import registry

# Fields of config.rollout and config.search that evaluation does not read.
TRAINING = ("rollout.temperature", "search.engine", "search.noise_per")


class SearchesFailed(UserError):
    """Most searches of an evaluation failed. The same command repeats it."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class EvaluationPart:
    """One evaluation of the config. play: () -> (its records, its lines of metrics)."""

    wanted: Evaluation
    play: Callable[[], tuple[list[dict], list[dict]]]


def evaluate(run: Run, parts: "Parts | None" = None):
    """Plays what is not kept yet, and writes the tables. parts: in place of the evaluations of the run's config."""
    parts = parts or Parts(run)
    number = max((evaluation.number for evaluation in parts.kept.all()), default=0)
    run.writer.truncate("evaluate", number)
    done = []
    for part in parts.all():
        evaluation = _found(run, parts.kept, part.wanted)
        if evaluation is None:
            number += 1
            evaluation = _made(run, parts, part, number)
        done.append(evaluation)
    rows = [row for evaluation in done for row in evaluation.rows]
    for row in rows:
        run.writer.note(_line(row))
    subjects = {evaluation.subject.role: evaluation.subject for evaluation in done}
    if kept_evaluations.TRAINED not in subjects and kept_evaluations.BASE in subjects:
        run.writer.note("evaluate: this run has trained no policy (models/policy); the rows are of the one that it starts "
                        f"from, {subjects[kept_evaluations.BASE].source}")
    _finish(run, parts.kept, done, rows)


def _found(run, folder, wanted) -> Evaluation | None:
    """The kept evaluation like `wanted`, None if a search of it failed. Hosts without the files get `wanted` itself."""
    def find():
        found = folder.find(wanted) if hosts.is_lead() else None
        if found and not found.failed_searches:
            folder.records(found.name)  # raises where they are damaged, before other stages rely on them
        return found

    found = hosts.together(find)
    if not hosts.agree(found is not None and not found.failed_searches):
        return None
    run.writer.note(f"evaluate: evaluation/{wanted.name} is there already")
    return found or wanted


def _made(run, parts, part, number) -> Evaluation:
    """Plays an evaluation and keeps it, unless an earlier one with fewer failed searches is kept."""
    records, lines = part.play()
    for line in lines:
        run.writer.write(number, line, "evaluate", show=False)
    made = dataclasses.replace(part.wanted, number=number)
    made = made.with_records(records, summarize(made.title, records, parts.questions, total=True))
    if not hosts.is_lead():
        return made
    before = parts.kept.find(part.wanted)
    if before is not None and before.failed_searches < made.failed_searches and parts.kept.has_records(before.name):
        run.writer.note(f"evaluate: {made.failed_searches} searches of {made.title} failed; the earlier evaluation with "
                        f"{before.failed_searches} is kept")
        return before
    parts.kept.add(made, records)
    return made


def _finish(run, folder, done, rows):
    """Writes tables and evaluation.json. Raises SearchesFailed where an evaluation is not finished."""
    unfinished = [evaluation for evaluation in done if not evaluation.finished]
    if hosts.agree(bool(unfinished)):
        what = "; ".join(f"{evaluation.title}: {evaluation.failed_searches} of {evaluation.searches} searches failed"
                         for evaluation in unfinished)
        raise SearchesFailed(f"the evaluation is not finished: {what}. See that search.eval_engine = "
                             f"{run.config.search.eval_engine!r} answers and start the same command again")
    if not hosts.is_lead():
        return
    sides = {evaluation.part: evaluation for evaluation in done}
    if "after" in sides:
        compared = compare.compare_records(*(folder.records(sides[part].name) for part in ("before", "after")),
                                           seed=run.config.seed)
        run.write_json("evaluation/comparison.json", compared)
        run.writer.note("before (first) and after (second) training, paired bootstrap:\n"
                        + compare.comparison_table(compared))
    compare.write_tables(run.workdir, rows)
    run.write_json("evaluation.json", rows)


def _line(row) -> str:
    group = " ".join((name_of_group(row) or f"hops {row['hops']}").split())
    failed = f"  {row['failed_searches']} searches FAILED" if row["failed_searches"] else ""
    return (f"{row['name']:<60} {group}  EM {row['em']:.3f} ± {row['em_se']:.3f}  F1 {row['f1']:.3f}  "
            f"answered {row['answered']:.2f}  searches {row['searches']:.2f}  n {row['n']}{failed}")


class Parts:
    """The evaluations of a run's config. Models and engines are loaded when a part is played."""

    def __init__(self, run: Run):
        self.run, self.config, self.kept = run, run.config, kept_evaluations.Kept(run.workdir)
        self.questions = run.evaluation_questions
        self.how = how(run, self.questions)
        self._objects = {}

    def all(self) -> Iterator[EvaluationPart]:
        config, base = self.config, self._subject(kept_evaluations.BASE, "models/warm_start", "models/base")
        policies = [("before", base)]
        if build.checkpoint_exists(self.run.path("models/policy")):
            policies.append(("after", self._subject(kept_evaluations.TRAINED, "models/policy")))
        options = config.evaluate
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
        for name in config.evaluate.baselines:
            player = policies[-1][1]
            if config.evaluate.baseline_model == "base":
                player = base if name in OWN_PROMPT else self._subject(kept_evaluations.BASE, "models/base")
            subject, more = player, {"rollout.temperature": config.rollout.temperature}
            more |= {field: value for field, value in (
                ("prompts.baseline_examples", config.prompts.baseline_examples),
                ("evaluate.baseline_turn_tokens", config.evaluate.baseline_turn_tokens)) if value}
            if name in ("best_of_n", "tree_search"):
                more |= {"samples": config.evaluate.baseline_samples}
            if name == "trajectory_sft":
                subject, more = base, more | {
                    "train": _source(config, config.data.train), "corpus": _source(config, config.data.corpus),
                    "episodes": num_episodes(config), "trajectory_sft": dataclasses.asdict(config.trajectory_sft)}
            wanted = self._wanted(f"baseline_{name}", f"baseline {name}", subject, **more)
            yield EvaluationPart(wanted, functools.partial(self.play_baseline, name, player, wanted.name))
        if config.data.eval.startswith(build.TINY_WORLD) and not config.data.benchmarks:
            yield self._part("random_document", "random retrieved document", Subject(kept_evaluations.NO_POLICY, "", ""),
                             self._play_random_document)

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
        return Subject(role, config.init, _fingerprint_of(config, self.config.seed))

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


def how(run: Run, questions) -> dict:
    """{dotted name: value} of everything but the policy that changes an evaluation's figures."""
    config = run.config
    asked = [(question.id, question.question, question.golden_answers, question.metadata) for question in questions]
    found = {
        "seed": config.seed, "questions": _hash(asked), "tokenizer": _files(build.local_path(config.tokenizer)),
        "prompts.policy": _hash(dataclasses.asdict(PolicyTemplate.load(config.prompts.policy))),
        "prompts.chat": config.prompts.chat, "data.eval_corpus": _source(config, config.data.eval_corpus),
        **{f"policy.{name}": getattr(config.policy, name) for name in ("dtype", "param_dtype", "cache_dtype")},
        **_fields(config)}
    # What an engine of one's own reads: the files that its options name.
    files = {name: value for name, value in config.search.options.items() if isinstance(value, (str, pathlib.Path))}
    found |= {f"search.options.{name}, its file": kept_evaluations.fingerprint(path) for name, path in files.items()
              if pathlib.Path(path).is_file()}
    needs = registry.needs(config.search.eval_engine, config.search)
    if "simulator" in needs:
        path = next((path for path in map(run.path, ("models/simulator", "models/simulator_base"))
                     if build.checkpoint_exists(path)), None)
        found["simulator"] = (kept_evaluations.fingerprint(path) if path
                              else _fingerprint_of(config.simulator, config.seed + 1))
        found |= {f"simulator.{name}": getattr(config.simulator, name)
                  for name in ("dtype", "param_dtype", "cache_dtype", "quantize")}
    if "prompt" in needs:
        found |= {f"prompts.{name}": getattr(config.prompts, name) for name in ("simulator", "simulator_chat")}
    return json.loads(json.dumps(found, default=str))


def _fields(config) -> dict:
    """The fields of config.rollout and config.search that change figures, by their declared effect."""
    found = {}
    for name, leaf in leaves(Config).items():
        read = not leaf.spec.engines or config.search.eval_engine in leaf.spec.engines
        if name.startswith(("rollout.", "search.")) and name not in TRAINING and leaf.spec.effect != "how" and read:
            found[name] = functools.reduce(getattr, name.split("."), config)
    return found


def _fingerprint_of(config, seed) -> str:
    """The fingerprint of config.init's checkpoint, or of the settings that random parameters are drawn from."""
    if config.init == "random":
        return _hash(["random", seed, dict(config.shape), config.positional_bias_init])
    return kept_evaluations.fingerprint(build.local_path(config.init, weights=True))


def _source(config: Config, source: str):
    """A corpus or questions, by its name and a hash of its file."""
    if source.startswith(build.TINY_WORLD):
        return [source, dict(config.world)]
    path = pathlib.Path(source)
    return [path.name, kept_evaluations.fingerprint(path)] if path.is_file() else [source]


def _files(path) -> str:
    """A hash of the small files of a tokenizer's folder."""
    path = pathlib.Path(path)
    files = [path] if path.is_file() else sorted(
        file for file in path.glob("*") if file.suffix in (".json", ".model", ".txt", ".jinja"))
    return _hash([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def report(run: Run):
    from zsjax import report

    if hosts.is_lead():
        run.writer.note(f"report: {report.write(run.workdir)}")
