"""What came of it: base, trained policy and baselines with the real engine, and the report."""

import json

import jax

from zsjax.evaluate import play_samples, random_document_baseline, summarize
from zsjax.evaluation import compare
from zsjax.monitor import costs
from zsjax.parallel import hosts, mesh
from zsjax.rollout import make_rollout
from zsjax.run import build
from zsjax.run.stages.run import Run


def evaluate(run: Run):
    if run.done("evaluate", "evaluation.json"):
        return
    config = run.config
    questions = build.benchmarks(config)
    engine = run.engine(config.search.eval_engine, config.data.eval_corpus, spread=True)
    policies = [("before", run.start_policy(mesh.DECODE_RULES))]
    if build.checkpoint_exists(run.path("models/policy")):
        policies.append(("after", run.policy("policy", rules=mesh.DECODE_RULES)))
    engines = [("", engine)]
    if config.evaluate.drop_best:
        lossy = run.engine(config.search.eval_engine, config.data.eval_corpus, drop_best=config.evaluate.drop_best)
        engines.append((f", best document lost in {config.evaluate.drop_best:.0%} of searches", lossy))
    table, played = [], {}
    run.writer.truncate("evaluate", 0)
    for suffix, engine_used in engines:
        rollout = make_rollout(policies[0][1][0], engine_used, run.tokenizer, config, run.mesh)
        rollout = costs.Meter(rollout, engine_used, devices=mesh.device_count(run.mesh, config.mesh))
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
            table += summarize(title, records, questions, total=True)
            run.writer.write(len(played) + 1, rollout.take(), "evaluate", show=False)
            part = f"{name}{'_lossy' if suffix else ''}"
            played[part] = records
            if not hosts.is_lead():
                continue
            path = run.path("evaluation") / f"{part}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    if config.evaluate.baselines:
        table += play_baselines(run, engine, questions, policies[-1][1])
    if config.data.eval.startswith(build.TINY_WORLD) and not config.data.benchmarks:
        from zsjax.tiny_world.world import answer_of

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


def play_baselines(run: Run, engine, questions, policy) -> list[dict]:
    """Rows of config.evaluate.baselines, on the evaluation's questions and engine.

    policy: (DecoderConfig, params) of the run's policy, which plays them unless evaluate.baseline_model is "base".
    """
    from zsjax.evaluation.baselines import METHODS, Setting

    config, rows, meters = run.config, [], []
    by_base = config.evaluate.baseline_model == "base"
    model, params = run.policy("base", rules=mesh.DECODE_RULES) if by_base else policy

    def meter(rollout, engine):
        meters.append(costs.Meter(rollout, engine, devices=mesh.device_count(run.mesh, config.mesh)))
        return meters[-1]

    for number, name in enumerate(config.evaluate.baselines):
        setting = Setting(
            config, model, params, run.tokenizer, engine, questions, jax.random.key(config.seed), meter, run.mesh,
            train_questions=lambda: build.questions(config, config.data.train),
            train_engine=lambda: run.engine(config.search.eval_engine, config.data.corpus, spread=True),
            base_params=lambda: run.start_policy()[1], writer=run.writer,
            directory=run.path("checkpoints") / "trajectory_sft")
        records = METHODS[name](setting)
        run.write_json(f"evaluation/baseline_{name}.json", records)
        rows += summarize(f"baseline {name}", records, questions, total=True)
        for meter_of in meters:
            run.writer.write(number + 1, {"baseline": name} | meter_of.take(), "evaluate", show=False)
        meters.clear()
    return rows


def report(run: Run):
    from zsjax import report

    if hosts.is_lead():
        run.writer.note(f"report: {report.write(run.workdir)}")
