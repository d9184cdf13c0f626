"""The stages of a run, in order. Each is resumable, and outputs that are in the run's folder are kept.

    pretrain            a base for the policy, from scratch          -> models/base
    pretrain_simulator  a base for the simulator, from scratch       -> models/simulator_base
    warm_start          the base imitates episodes                   -> episodes.jsonl, models/warm_start
    collect             the policy searches with the real engine     -> searches.jsonl
    tune_simulator      the simulator learns to play that engine     -> models/simulator, gates.json
    train               reinforcement learning                       -> models/policy
    evaluate            start and trained policy, on the real engine -> evaluation.json, evaluation/*.jsonl
    report              one page                                     -> report.html

A stage reads the output of an earlier stage, else the input that the config names. Gates (config.gates) stop a run whose
model cannot read or whose simulator leaks.
"""

import contextlib
import json
import pathlib
import time

from zsjax import config as configuration
from zsjax.config import Config
from zsjax.config.folder import check_local
from zsjax.errors import UserError, reading
from zsjax.monitor import trackers
from zsjax.monitor.writer import Writer
from zsjax.parallel import hosts, stops
from zsjax.run import checksums, occupied
from zsjax.run.stages.bases import pretrain, pretrain_simulator
from zsjax.run.stages.context import Run
from zsjax.run.stages.evaluation import evaluate, report
from zsjax.run.stages.policy import train
from zsjax.run.stages.simulator_tuning import collect, tune_simulator
from zsjax.run.stages.warm_start import warm_start
from zsjax.search import BudgetSpent

STAGES = {stage.__name__: stage for stage in (pretrain, pretrain_simulator, warm_start, collect, tune_simulator, train,
                                              evaluate, report)}


# stage -> (its output, the questions of `Run` that it plays). They are read first, so that a question which cannot be
# played stops the run before it begins. Without an output, the stage itself decides what is left to do.
QUESTIONS = {"collect": ("searches.jsonl", ["supervised_questions"]),
             "train": ("models/policy", ["train_questions", "watched_questions"]),
             "evaluate": (None, ["evaluation_questions"])}


class OutOfBudget(UserError):
    """Web search would cost more than search.remote.budget."""

    exit_code = 1


def run(config: Config, workdir, *, stages=None):
    """Runs the stages (None: config.stages) in `workdir`. An interrupted run is resumed.

    Raises:
      UserError: the folder holds a run with another config, another process works there, an input or a package is
        missing, or a gate failed.
      stops.Stopped: by SIGTERM or SIGINT; what is saved is kept.
    """
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stops.handled())
        context = hosts.together(lambda: _begun(config, workdir, stack))
        _run(context, stages or config.stages)


def _begun(config, workdir, stack) -> Run:
    """The context of the stages. On the lead, the folder is held and the writer open until the stack ends."""
    lead = hosts.is_lead()
    modules = trackers.imported(config.trackers) if lead else {}
    check_local(workdir)
    if not lead:
        return Run(config, workdir, Writer(None, quiet=True), configuration.to_json(config))
    stack.enter_context(occupied.occupy(workdir))
    configuration.withdraw_config(workdir)  # of a run that was killed before its first result
    checksums.check(workdir)
    path, began = workdir / "config.json", time.time()
    with reading(path):
        before = path.read_text() if path.exists() else None
    config_json = configuration.write_config(workdir, config)

    @stack.push
    def undo(kind, error, traceback):
        if error is not None:
            configuration.withdraw_config(workdir, before, began)

    return Run(config, workdir, stack.enter_context(_writer(config, workdir, config_json, modules)), config_json)


def _run(context, stages):
    try:
        hosts.together(lambda: _read_questions(context, stages))
        for stage in stages:
            began = time.time()
            STAGES[stage](context)
            hosts.from_lead(lambda began=began: checksums.seal(context.workdir, began))
    except BudgetSpent as error:
        raise OutOfBudget(f"{stage} stopped: {error}. Results that were paid for are kept; raise "
                          "search.remote.budget and start the same command again") from error


def _read_questions(context, stages):
    for output, names in [QUESTIONS[stage] for stage in stages if stage in QUESTIONS]:
        if output is None or not context.path(output).exists():
            for name in names:
                getattr(context, name)


def _writer(config, workdir, config_json, modules) -> Writer:
    tracked = trackers.Trackers(modules, workdir, name=config.name, config=json.loads(config_json)) if modules else None
    return Writer(workdir, trackers=tracked)
