"""The stages of a run, in order, each resumable: what a stage makes lies in the run's folder, and what is there is kept.

    pretrain            a base for the policy, from scratch          -> models/base
    pretrain_simulator  a base for the simulator, from scratch       -> models/simulator_base
    collect             the base searches with the real engine       -> searches.jsonl
    tune_simulator      the simulator learns to play that engine     -> models/simulator, gates.json
    train               reinforcement learning                       -> models/policy
    evaluate            base and trained policy, on the real engine  -> evaluation.json, evaluation/*.jsonl
    report              everything on one page                       -> report.html

A stage takes its input from the folder if an earlier stage put it there, else from what the config names. Between the
stages stand gates (config.gates): a model that cannot read, or a simulator that leaks, stops the run.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib

import jax

from zsjax import build, compare, costs, hosts, sharding
from zsjax import config as configuration
from zsjax.config import Config, UserError
from zsjax.data import QuestionStream
from zsjax.evaluate import play, play_samples, random_document_baseline, summarize
from zsjax.metrics import Writer
from zsjax.rollout import make_rollout, transcript
from zsjax.search import BudgetSpent, Mixed
from zsjax.search.simulator import Simulator
from zsjax.validation import REAL_ENGINES


class GateFailed(UserError):
    """A model is not good enough for the next stage; the message says which measure failed and by how much."""

    exit_code = 1


class OutOfBudget(UserError):
    """Web search would cost more than search.remote.budget."""

    exit_code = 1


def run(config: Config, workdir, *, stages=None):
    """Runs the stages (all of config.stages by default) in `workdir`; an interrupted run goes on where it was.

    Raises:
      UserError: the folder holds a run with another config, an input is missing, or a gate failed.
    """
    workdir = pathlib.Path(workdir)
    config_json = configuration.write_config(workdir, config) if hosts.is_lead() else configuration.to_json(config)
    hosts.wait("config")
    with Writer(workdir) if hosts.is_lead() else Writer(None, quiet=True) as writer:
        context = Run(config, workdir, writer, config_json)
        for stage in stages or config.stages:
            try:
                STAGES[stage](context)
            except BudgetSpent as error:
                raise OutOfBudget(f"{stage} stopped: {error}. What was paid for is kept: raise search.remote.budget and "
                                  "start the same command again") from error
            hosts.wait(stage)


class Run:
    """What the stages share: the config, the folder, and objects that are built once, when first asked for."""

    def __init__(self, config: Config, workdir: pathlib.Path, writer: Writer, config_json: str):
        self.config, self.workdir, self.writer, self.config_json = config, workdir, writer, config_json

    def path(self, name: str) -> pathlib.Path:
        return self.workdir / name

    @functools.cached_property
    def tokenizer(self):
        return build.tokenizer(self.config)

    @functools.cached_property
    def mesh(self):
        return sharding.make_mesh(self.config.mesh)

    def engine(self, name: str, source: str, *, drop_best: float = 0.0, spread: bool = False):
        """The engine that searches the corpus `source`, by a name of config.search.engine; spread: as of `simulator`."""
        if name in ("simulator", "mixed"):
            playing = build.frozen(self.config.simulator, self.simulator("simulator", "simulator_base", spread=spread))
            if name == "simulator":
                return playing
            return Mixed(playing, self.engine(self.config.search.mix.real, source), seed=self.config.seed)
        return build.engine(name, self.config, source, workdir=self.workdir, drop_best=drop_best)

    def policy(self, *names: str, rules=None):
        """(DecoderConfig, params) of the first of models/NAME that this run has made, else of config.policy.init.

        rules: None loads them onto one device; else how they are cut over the run's mesh.
        """
        return self._model(self.config.policy, self.config.seed, names, self.mesh if rules else None, rules)

    def simulator(self, *names: str, spread: bool = False) -> Simulator:
        """The simulator around the first of models/NAME that this run has made, else around config.simulator.init.

        spread: whether its parameters are loaded onto all devices of this host that play it in rollouts on the mesh.
        """
        mesh = (sharding.simulator_mesh(self.config.mesh) or sharding.local_mesh(self.mesh)) if spread else None
        model = self._model(self.config.simulator, self.config.seed + 1, names, mesh, sharding.DECODE_RULES)
        return build.simulator(self.config, *model, self.tokenizer)

    def _model(self, config, seed, names, mesh, rules):
        made = [self.path("models") / name for name in names]
        path = next((path for path in made if build.checkpoint_exists(path)), None)
        return build.model(config, self.tokenizer, seed=seed, path=path, mesh=mesh, rules=rules)

    def save_model(self, name: str, config, params):
        from zsjax.models.hf import save_hf

        params = params if jax.process_count() == 1 else hosts.fetch(params)
        if hosts.is_lead():
            save_hf(self.path("models") / name, config, params, tokenizer=self.tokenizer)

    def done(self, stage: str, output: str) -> bool:
        """Whether the stage's output is there already; says so once."""
        there = hosts.agree(self.path(output).exists())
        if there:
            self.writer.note(f"{stage}: {output} is there already")
        return there

    def write_json(self, name: str, value):
        if not hosts.is_lead():
            return
        path = self.path(name)
        half = path.with_name(path.name + ".writing")
        half.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        os.replace(half, path)

    def add_gates(self, rows: list[dict], failed: list[str]):
        """Keeps gate rows for the report and stops the run where a gate failed."""
        path = self.path("gates.json")
        kept = json.loads(path.read_text()) if path.exists() else []
        names = {row["gate"] for row in rows}
        self.write_json("gates.json", [row for row in kept if row["gate"] not in names] + rows)
        if failed:
            raise GateFailed("the run stops here, a gate failed:\n  " + "\n  ".join(failed))


def pretrain(run: Run):
    if run.done("pretrain", "models/base"):
        return
    from zsjax.pretrain import pretrain_policy

    model, params = pretrain_policy(run.config, run.tokenizer, writer=run.writer,
                                    directory=run.path("checkpoints") / "pretrain", config_json=run.config_json)
    run.save_model("base", model, params)


def pretrain_simulator(run: Run):
    if run.done("pretrain_simulator", "models/simulator_base"):
        return
    from zsjax.pretrain_simulator import pretrain_simulator

    model, params = pretrain_simulator(run.config, run.tokenizer, writer=run.writer,
                                       directory=run.path("checkpoints") / "pretrain_simulator",
                                       config_json=run.config_json)
    run.save_model("simulator_base", model, params)


def collect(run: Run):
    if run.done("collect", "searches.jsonl"):
        return
    from zsjax.simulation.collect import collect, search_for, write_searches
    from zsjax.simulation.gates import make_probes

    config = run.config
    model, params = run.policy("base")
    check_reading(run, model, params)
    batch = min(config.evaluate.batch_rows, config.collect.episodes)
    name = config.search.eval_engine if config.search.eval_engine in REAL_ENGINES else "bm25"
    engine, questions = run.engine(name, config.data.corpus), build.questions(config, config.data.train)
    with run.writer.track("collect", config.collect.episodes) as advance:
        played = 0

        def progress(total):
            nonlocal played
            advance(total - played)
            played = total

        meters = []

        def metered(recorder):
            meters.append(costs.Meter(make_rollout(model, recorder, run.tokenizer, config), engine))
            return meters[-1]

        searches = collect(
            metered, engine, params, questions, run.tokenizer,
            episodes=config.collect.episodes, batch_questions=batch, num_documents=config.search.num_candidates,
            key=jax.random.fold_in(jax.random.key(config.seed), 1), progress=progress)
    run.writer.truncate("collect", 0)
    run.writer.write(1, meters[0].take(), "collect", show=False)
    run.writer.note(f"collect: {len(searches)} different searches of {config.collect.episodes} episodes")
    if config.collect.probes:
        probes = make_probes(questions, limit=config.collect.probes, seed=config.seed + 1)
        queries = [(probe.question, probe.query, probe.kind) for probe in probes]
        searches += search_for(queries, engine, num_documents=config.search.num_candidates)
        run.writer.note(f"collect: {len(searches)} with the probes")
    counted = {}
    if config.collect.label == "judge":
        from zsjax.simulation.judge import judge_searches

        judging = config.collect.judge
        searches, counts = judge_searches(searches, build.judge(config))
        counted = {"judge": {"model": judging.init or judging.model, "template": judging.template, **counts}}
        run.writer.note(f"collect: {counts['useful']} of {counts['judged']} documents are of use by the judge; "
                        + ", ".join(f"{name} {count}" for name, count in counts.items() if name not in ("useful", "judged")))
    provenance = {"config_sha256": hashlib.sha256(run.config_json.encode()).hexdigest(), "seed": config.seed,
                  "engine": name, "corpus": config.data.corpus, "policy": config.policy.init,
                  "episodes": config.collect.episodes, "probes": config.collect.probes, **counted}
    write_searches(run.path("searches.jsonl"), searches, provenance=provenance)


def check_reading(run: Run, model, params):
    """The first gate: with the right documents given, the base answers."""
    from zsjax.reading import documents_given

    config = run.config
    if not config.data.eval.startswith(build.TINY_WORLD):
        return
    rows = documents_given(model, params, run.tokenizer, run.engine("bm25", config.data.eval_corpus),
                           build.questions(config, config.data.eval, config.data.eval_limit), config)
    for row in rows:
        run.writer.note(f"gate reading: right documents given, {row['hops']} hop(s): EM {row['em']:.2f} (n={row['n']})")
    gate = config.gates.reading
    failed = [f"reading: with the right documents given {row['em']:.2f} of {row['hops']}-hop questions are answered, "
              f"at least {gate} needed" for row in rows if gate is not None and row["em"] < gate]
    run.add_gates([{"gate": "reading", **row} for row in rows], failed)


def tune_simulator(run: Run):
    if run.done("tune_simulator", "models/simulator"):
        return
    from zsjax.simulation import tune

    simulator = tune.tune(run.config, run.simulator("simulator_base"), run.path("searches.jsonl"), writer=run.writer,
                          directory=run.path("checkpoints") / "tune_simulator", config_json=run.config_json,
                          report=lambda rows: run.add_gates([{"gate": "held-out searches", **row} for row in rows], []))
    check_simulator(run, build.frozen(run.config.simulator, simulator))  # as it will play
    run.save_model("simulator", simulator.config, simulator.params)


def check_simulator(run: Run, simulator: Simulator):
    """The second gate: useful documents answer, noisy ones do not, and off-path queries learn no more than BM25 tells."""
    from zsjax.simulation import gates

    config = run.config
    questions = build.questions(config, config.data.train)
    if not all("queries" in question.metadata for question in questions):
        run.writer.note("gate simulator: not measured, the questions do not know their right queries")
        return
    rows = gates.measure(simulator, run.engine("bm25", config.data.corpus), questions,
                         k=config.search.num_documents, seed=config.seed)
    run.writer.note(gates.table(rows))
    run.add_gates([{"gate": "simulator", **row} for row in rows], gates.check(rows, config.gates))


def train(run: Run):
    if run.done("train", "models/policy"):
        return
    from zsjax.train import train

    config = run.config
    model, params = run.policy("base", rules=sharding.TRAIN_RULES)
    engine = run.engine(config.search.engine, config.data.corpus, spread=True)
    params = train(config, run.workdir, policy_config=model, params=params, tokenizer=run.tokenizer, engine=engine,
                   stream=QuestionStream(build.questions(config, config.data.train), config.seed), writer=run.writer,
                   evaluate_now=real_evaluation(run, model), config_json=run.config_json,
                   save_best=lambda params: run.save_model("best", model, params))
    run.save_model("policy", model, params)


def real_evaluation(run: Run, model):
    """params -> scores on a few held-out questions with the real engine, logged beside the score in the simulator."""
    config = run.config
    engine = run.engine(config.search.eval_engine, config.data.eval_corpus, spread=True)
    rollout = costs.Meter(make_rollout(model, engine, run.tokenizer, config, run.mesh), engine)
    questions = build.questions(config, config.data.eval, config.train.eval_questions)

    def evaluate_now(params):
        records, _ = play(rollout, params, questions, key=jax.random.key(config.seed),
                          batch_rows=min(len(questions), config.evaluate.batch_rows))
        rows = summarize("", records, questions)
        scores = {f"eval/{name}": sum(row[name] * row["n"] for row in rows) / len(records)
                  for name in ("em", "f1", "searches")}
        by_hops = {f"eval/em_{row['hops']}_hop": row["em"] for row in rows if row["hops"] != "all"}
        # The step's own line has its devices, and its time holds ours.
        used = {f"eval/{name}": value for name, value in rollout.take().items() if name not in ("used/devices", "time/step")}
        return scores | by_hops | used

    return evaluate_now


def evaluate(run: Run):
    if run.done("evaluate", "evaluation.json"):
        return
    config = run.config
    questions = build.benchmarks(config)
    engine = run.engine(config.search.eval_engine, config.data.eval_corpus, spread=True)
    policies = [("before", run.policy("base", rules=sharding.DECODE_RULES))]
    if build.checkpoint_exists(run.path("models/policy")):
        policies.append(("after", run.policy("policy", rules=sharding.DECODE_RULES)))
    engines = [("", engine)]
    if config.evaluate.drop_best:
        lossy = run.engine(config.search.eval_engine, config.data.eval_corpus, drop_best=config.evaluate.drop_best)
        engines.append((f", best document lost in {config.evaluate.drop_best:.0%} of searches", lossy))
    table, played = [], {}
    run.writer.truncate("evaluate", 0)
    for suffix, engine_used in engines:
        rollout = make_rollout(policies[0][1][0], engine_used, run.tokenizer, config, run.mesh)
        rollout = costs.Meter(rollout, engine_used, devices=sharding.device_count(run.mesh, config.mesh))
        for name, (_, params) in policies:
            title = f"{name} training{suffix}"
            with run.writer.track(f"evaluate {title}", len(questions) * config.evaluate.samples) as advance:
                def progress(batches):
                    for batch in batches:
                        yield batch
                        advance(min(config.evaluate.batch_rows, len(questions) - batch))

                records = play_samples(
                    rollout, params, questions, key=jax.random.key(config.seed), samples=config.evaluate.samples,
                    progress=progress, batch_rows=config.evaluate.batch_rows, temperature=config.evaluate.temperature)
            table += summarize(title, records, questions)
            run.writer.write(len(played) + 1, rollout.take(), "evaluate", show=False)
            part = f"{name}{'_lossy' if suffix else ''}"
            played[part] = records
            if not hosts.is_lead():
                continue
            path = run.path("evaluation") / f"{part}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    table += play_baselines(run, engine, questions, *policies[-1][1])
    if config.data.eval.startswith(build.TINY_WORLD) and not config.data.benchmarks:
        from zsjax.data.tiny_world import answer_of

        table += random_document_baseline(engine, questions, answer_of, k=config.search.num_documents, seed=config.seed)
    if "after" in played:
        rows = compare.compare_records(played["before"], played["after"], seed=config.seed)
        run.write_json("evaluation/comparison.json", rows)
        run.writer.note("before (first) and after (second) training, paired bootstrap:\n" + compare.comparison_table(rows))
    if hosts.is_lead():
        compare.write_tables(run.workdir, table)
    run.write_json("evaluation.json", table)
    for row in table:
        group = row.get("data_set", f"hops {row['hops']}")
        run.writer.note(f"{row['name']:<60} {group}  EM {row['em']:.3f} ± {row['em_se']:.3f}  "
                        f"F1 {row['f1']:.3f}  searches {row['searches']:.2f}  n {row['n']}")


def play_baselines(run: Run, engine, questions, model, params) -> list[dict]:
    """Rows of config.evaluate.baselines, on the evaluation's questions and engine."""
    from zsjax.baselines import METHODS, Setting

    config, rows, meters = run.config, [], []

    def meter(rollout, engine):
        meters.append(costs.Meter(rollout, engine, devices=sharding.device_count(run.mesh, config.mesh)))
        return meters[-1]

    for number, name in enumerate(config.evaluate.baselines):
        setting = Setting(
            config, model, params, run.tokenizer, engine, questions, jax.random.key(config.seed), meter, run.mesh,
            train_questions=lambda: build.questions(config, config.data.train),
            train_engine=lambda: run.engine(config.search.eval_engine, config.data.corpus, spread=True),
            base_params=lambda: run.policy("base")[1], writer=run.writer,
            directory=run.path("checkpoints") / "trajectory_sft")
        records = METHODS[name](setting)
        run.write_json(f"evaluation/baseline_{name}.json", records)
        rows += summarize(f"baseline {name}", records, questions)
        for meter_of in meters:
            run.writer.write(number + 1, {"baseline": name} | meter_of.take(), "evaluate", show=False)
        meters.clear()
    return rows


def report(run: Run):
    from zsjax import report

    if hosts.is_lead():
        run.writer.note(f"report: {report.write(run.workdir)}")


STAGES = {stage.__name__: stage for stage in (pretrain, pretrain_simulator, collect, tune_simulator, train, evaluate,
                                              report)}


def ask(question: str, config: Config, workdir=None, *, show=None) -> dict:
    """One question through the policy and the evaluation engine; greedy.

    Args:
      question: the question.
      config: names policy, tokenizer and engine.
      workdir: a run whose trained policy answers; without one, or where it has none, the carried policy of the tiny
        world if the config is the tiny world's, else config.policy.init.
      show: called with (role, text) of each piece of the episode as soon as it is there, what the policy writes token by
        token.

    Returns:
      A record as `transcript.records` gives.
    """
    from zsjax.types import Question

    if workdir is None:  # nowhere to keep an index
        config = dataclasses.replace(config, search=dataclasses.replace(config.search, index_dir=""))
    with Writer(None) as writer:
        context = Run(config, pathlib.Path(workdir or "."), writer, "")
        model, params = _answering_policy(context, workdir)
        engine = context.engine(config.search.eval_engine, config.data.eval_corpus)
        stream = transcript.Stream(context.tokenizer, show) if show else None
        # After each token there is a look at what is new.
        config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, visit_every=1))
        rollout = make_rollout(model, engine, context.tokenizer, config, watch=stream)
        records, _ = play(rollout, params, [Question("asked", question, ())], key=jax.random.key(config.seed), batch_rows=1)
    return records[0]


def _answering_policy(run: Run, workdir):
    if workdir is not None and build.checkpoint_exists(run.path("models/policy")):
        return run.policy("policy")
    if run.config.tokenizer == "asset:tiny_world/tokenizer":
        from zsjax.data.assets import asset_path

        return build.model(run.config.policy, run.tokenizer, seed=0, path=asset_path("asset:tiny_world/policy"))
    logging.warning("no trained policy in %s: %s answers", workdir, run.config.policy.init)
    return run.policy("base")


def export(config: Config, workdir, out) -> pathlib.Path:
    """Copies the run's policy (trained, or as far as its last checkpoint is) to a Hugging Face folder `out`.

    Raises:
      UserError: the run has no policy yet, or `out` exists.
    """
    from zsjax.checkpoint import Checkpointer
    from zsjax.models import lora
    from zsjax.models.hf import save_hf
    from zsjax.train import make_optimizers, start_state

    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; choose another folder or remove it")
    with Writer(None) as writer:
        context = Run(config, workdir, writer, "")
        if build.checkpoint_exists(context.path("models/policy")):
            model, params = context.policy("policy")
        else:
            folder = workdir / "checkpoints" / "train"
            if not folder.is_dir():
                raise UserError(f"{workdir} has neither models/policy nor checkpoints/train: train first")
            model, params = context.policy("base")
            template, frozen = start_state(config, model, params, make_optimizers(config),
                                           sharding.make_mesh({}, jax.devices()[:1]))
            with Checkpointer(folder) as checkpoints:
                restored = checkpoints.restore(template)
            if restored is None:
                raise UserError(f"{folder} holds no complete checkpoint: train first")
            params = restored[1].params
            if frozen is not None:
                params = lora.merge(frozen, params, config.policy.lora)
        save_hf(out, model, params, tokenizer=context.tokenizer)
    return out
