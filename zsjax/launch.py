r"""The command line: reads flags, finds every problem of the config, then runs a command.

    python -m zsjax.launch [COMMAND] --config experiments/X.py[:arg] --workdir DIR [--config.field=value ...]

`python -m zsjax.launch --help` lists the commands, `python -m zsjax.launch COMMAND --help` the arguments of one. A user's
mistake ends in one message and exit code 2, without a traceback. Only this module reads flags.
"""

import argparse
import json
import os
import pathlib
import signal
import sys
import types

from zsjax import __version__
from zsjax.config import resolve
from zsjax.errors import ConfigError, InputError, UserError
from zsjax.run.commanded import find_config
from zsjax.run.logs import show, show_logs, until_nobody_reads

_PROGRAM = "python -m zsjax.launch"


def console(*, run=None) -> int:
    """The command `zsjax`. Modules of the working folder are found, as `python -m zsjax.launch` finds them."""
    sys.path.insert(0, os.getcwd())
    return leave(main(run=run))


def leave(code: int) -> int:
    """Returns 0. After a mistake ends the process: orbax's threads may wait for minutes for a checkpoint that failed."""
    if code:
        print(end="", flush=True)
        os._exit(code)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own end would print a traceback
    return code


def main(arguments: list[str] | None = None, *, run=None) -> int:
    """Runs a command line (without the program's name). Returns 0, 2 after a mistake, 130 or 143 after SIGINT or SIGTERM.

    run: makes a run's stages in place of `zsjax.run.pipeline.run`, with the same arguments.
    """
    options, overrides = parse_flags(sys.argv[1:] if arguments is None else arguments)
    options.pipeline = run
    try:
        show_logs(sys.stderr if getattr(options, "json", False) else sys.stdout)
        keep_compiled_programs()
        if options.distributed or options.hosts:
            from zsjax.parallel import hosts

            hosts.initialize(options.hosts or "")
        with until_nobody_reads():
            options.run(options, overrides)
        return 0
    except KeyboardInterrupt as stop:
        again = "; the same command resumes from the last checkpoint" if options.run is _run_stages else ""
        show(f"\n{str(stop) or 'interrupted' + again}")
        return getattr(stop, "exit_code", 130)
    except UserError as error:
        show(f"error: {error}")
        return getattr(error, "exit_code", 2)


def parse_flags(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """(options, {dotted field: text}) of a command line. Ends the process: code 2 on a wrong flag, 0 after --help."""
    shared, parser, commands = _parsers()
    overrides = {}
    for flag in (word for word in arguments if word.startswith("--config.")):
        field, equals, text = flag.removeprefix("--config.").partition("=")
        if not equals:
            parser.error(f"{flag} has no value; write {flag}=VALUE")
        overrides[field] = text
    # Flags that every command has may come before the command. The default command is "run".
    options, rest = shared.parse_known_args([word for word in arguments if not word.startswith("--config.")],
                                            argparse.Namespace(config=None, workdir=None, distributed=False, hosts=None))
    command = next((word for word in rest if word in commands), None)
    if command is not None:
        rest.remove(command)
    elif rest and not rest[0].startswith("-"):
        parser.error(f"unknown command {rest[0]!r}; one of {', '.join(commands)}")
    elif not {"-h", "--help", "--version"} & set(rest):
        command = "run"
    options, unknown = parser.parse_known_args([command, *rest] if command else rest, options)
    if unknown and unknown[0].startswith("-"):
        parser.error(f"unknown argument {unknown[0]!r} of {command}; config fields are set as --config.field=value")
    if unknown:
        number = ("no argument", "one argument", "two arguments")[len(options.takes)]
        parser.error(f"{command} takes {number}, but was given {unknown[0]}" + " as well" * bool(options.takes))
    if options.needs_all and any(getattr(options, _name(metavar)) is None for metavar in options.takes):
        parser.error(f"{command} needs {' and '.join(options.takes.values())}: {command} {' '.join(options.takes)}")
    options.workdirs = options.workdir or []
    if len(options.workdirs) > options.most_workdirs:
        parser.error(f"{command} takes {options.most_workdirs} --workdir, but was given {len(options.workdirs)}")
    options.workdir = next(iter(options.workdirs), None)
    if options.workdir is None and options.needs_workdir:
        parser.error("give --workdir DIR, the run's folder")
    return options, overrides


def _parsers():
    """(parser of the flags that every command has, parser of whole command lines, the commands)."""
    fields = "[--config.field=value ...]"
    usage = f"{_PROGRAM} [COMMAND] --config experiments/X.py[:arg] --workdir DIR {fields}"
    shared = argparse.ArgumentParser(prog=_PROGRAM, usage=usage, add_help=False, allow_abbrev=False,
                                     argument_default=argparse.SUPPRESS)
    shared.add_argument("--config", metavar="F.py[:arg]",
                        help="experiment file with get_config(arg); by default WORKDIR/config.json of a run that began")
    shared.add_argument("--workdir", type=_folder, metavar="DIR", action="append", help="the run's folder")
    shared.add_argument("--distributed", action="store_true",
                        help="join the other hosts of the job, found from SLURM, Cloud TPU, Kubernetes or Open MPI")
    shared.add_argument("--hosts", metavar="ADDRESS:PORT,COUNT,INDEX",
                        help="join hosts that cannot be found: the first one's address, their number, this one's index")
    parser = argparse.ArgumentParser(prog=_PROGRAM, usage=usage, parents=[shared], allow_abbrev=False,
                                     epilog="COMMAND --help lists a command's arguments. The default command is run.")
    parser.add_argument("--version", action="version", version=f"zsjax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", prog=_PROGRAM)

    def add(name, help, run=_run_stages, takes=types.MappingProxyType({}), *, stages=None, needs_workdir=True,
            needs_all=True):
        """takes: {metavar: help}. needs_all: none of them is optional. stages: None for all of config.stages."""
        shown = takes if needs_all else [f"[{metavar}]" for metavar in takes]
        made = commands.add_parser(name, help=help, description=help, parents=[shared], allow_abbrev=False,
                                   usage=" ".join([_PROGRAM, name, *shown, "[FLAGS]", fields]))
        made.set_defaults(run=run, takes=takes, stages=stages, needs_workdir=needs_workdir, needs_all=needs_all,
                          most_workdirs=2 if name == "view" else 1)
        for metavar, what in takes.items():
            made.add_argument(_name(metavar), nargs="?", metavar=metavar, help=what)
        return made.add_argument

    add("run", "all of config.stages, in order; resumes an interrupted run in WORKDIR (the default command)")
    add("train", "only reinforcement learning", stages=("train",))
    add("tune-simulator", "only the tuning of the simulator on collected trajectories", stages=("tune_simulator",))
    add("warm-start", "only the supervised training of the policy on episodes", stages=("warm_start",))
    add("collect", "only the collection of trajectories with the real engine", stages=("collect",))
    add("evaluate", "only the evaluation of the run's policy with config.search.eval_engine", stages=("evaluate",))
    flag = add("ask", 'ask "Who ...?" prints the episode, coloured by role; without a question, a conversation begins', _ask,
               {"QUESTION": "a question"}, needs_workdir=False, needs_all=False)
    flag("--json", action="store_true", help="prints the episode as JSON")
    flag = add("play", "you search and answer in the policy's place, against a real engine, the simulator or both", _play,
               needs_workdir=False)
    flag("--against", choices=("both", "real", "simulator"), default="both",
         help="both (the default) shows documents side by side, and you guess which engine is real")
    flag("--noise", type=float, default=0.5, help="probability of a noisy search by the simulator; default 0.5")
    flag("--seed", type=int, help="repeats a game's questions, noise and sides; by default they are new each time")
    flag = add("plan", "whether a run fits a machine, and the least time of a step", _plan, needs_workdir=False)
    flag("--target", metavar="CHIP:NUMBER", default="", help="h100:8, v5e:16, ...; by default config.mesh.target")
    flag("--estimate", action="store_true", help="compiles nothing, but estimates; compiling takes minutes")
    flag("--json", action="store_true", help="prints the plan as one JSON document")
    flag = add("serve-corpus", "a /retrieve server (Search-R1, FlashRAG) over a corpus", _serve_corpus,
               {"CORPUS": "a corpus (.jsonl[.gz] or .parquet of {id, title, text})"}, needs_workdir=False)
    flag("--host", default="127.0.0.1", help="default 127.0.0.1")
    flag("--port", type=int, default=8000, help="default 8000; 0: any free one")
    flag = add("compare", "compares the run's evaluation with another's, question by question", _compare,
               {"OTHER_WORKDIR": "another run's folder"})
    flag("--seeds", nargs="+", default=[], metavar="DIR", help="further seeds of the run, whose scores are averaged")
    flag("--other-seeds", nargs="+", default=[], metavar="DIR", help="the same of OTHER_WORKDIR")
    flag = add("view", "all trajectories of a run in your browser; a second --workdir DIR stands beside it", _view)
    flag("--port", type=int, default=8001, help="default 8001; 0: any free one")
    add("report", "WORKDIR/report.html from what the run has written so far", _report)
    add("export", "the run's policy as a Hugging Face folder", _export, {"OUT": "a folder"})
    add("import", "a GGUF file as a Hugging Face folder, or a published data set of simulator replies as searches.jsonl",
        _import, {"FILE": "a file (.gguf, .parquet, .jsonl[.gz])", "OUT": "a folder or file"}, needs_workdir=False)
    flag = add("conversations", "the run's trajectories as messages, for TRL or LLaMA-Factory", _conversations,
               {"OUT.jsonl": "a file"})
    flag("--form", choices=("trl", "sharegpt"), default="trl", help="default trl")
    flag("--low", type=float, metavar="SCORE", help="only trajectories with at least this reward")
    flag("--file", default="trajectories/", metavar="NAME",
         help="only trajectories of files whose names begin so, such as evaluation/; default trajectories/")
    return shared, parser, commands.choices


def _folder(text):
    """The path of a flag. An empty text, as of an unset shell variable, would be the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give the run's folder")
    return pathlib.Path(text)


def _name(metavar):
    """Where the namespace has a positional: OUT.jsonl in options.out."""
    return metavar.partition(".")[0].lower()


def keep_compiled_programs():
    """Keeps compiled programs between runs in .jax_cache or JAX_COMPILATION_CACHE_DIR (empty: nowhere).

    launch/env.sh has the same values. jax reads them at its import, so they do not change a program that has imported jax.
    """
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(".jax_cache").absolute()))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


# One function a command. Each imports its modules itself, so that a wrong config is refused within a second.

def _run_stages(options, overrides):
    from zsjax.config.checks import find_device_problems
    from zsjax.run import pipeline

    config = find_config(options, overrides, options.stages)
    import jax

    if problems := find_device_problems(config, jax.device_count(), jax.process_count()):
        raise ConfigError(problems)
    (options.pipeline or pipeline.run)(config, options.workdir, stages=options.stages)


def _ask(options, overrides):
    from rich.console import Console

    from zsjax import report
    from zsjax.run.ask import Asker, check_question
    from zsjax.run.terminal import converse

    if options.question is not None:
        check_question(options.question)  # before anything is loaded
    asker = Asker(find_config(options, overrides), options.workdir, show=None if options.json else report.episode_printer())
    if options.question is None:
        converse(asker, Console(), as_json=options.json)
    elif options.json:
        print(json.dumps(asker(options.question), ensure_ascii=False))
    else:
        report.print_result(asker(options.question))


def _play(options, overrides):
    from rich.console import Console

    from zsjax.run.play import Table
    from zsjax.run.terminal import play_games

    play_games(Table(find_config(options, overrides), options.workdir, against=options.against, noise=options.noise,
                     seed=options.seed), Console())


def _plan(options, overrides):
    from zsjax import plan

    made = plan.make_plan(find_config(options, overrides), options.target, compiles=not options.estimate)
    print(json.dumps(plan.document(made), indent=1) if options.json else plan.describe(made))


def _serve_corpus(options, overrides):
    """Serves BM25, or the index of --config.search.eval_engine, over a corpus until it is interrupted."""
    from zsjax.run import build
    from zsjax.search import registry
    from zsjax.search.server import RetrievalServer

    overrides = {"stages": "report", "search.index_dir": "" if options.workdir is None else "indexes"} | overrides
    config = resolve(None, overrides, check=False)
    name = config.search.eval_engine
    if "corpus" not in registry.needs(name, config.search):
        raise UserError(f"search.eval_engine = {name!r} is not an engine over a corpus; use bm25 or dense")
    try:
        engine = build.engine(name, config, options.corpus, workdir=options.workdir or ".")
    except InputError as error:
        raise UserError(f"cannot serve {options.corpus}: {error}") from error
    try:
        server = RetrievalServer(engine, host=options.host, port=options.port, topk=config.search.num_documents)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {options.host}:{options.port}: {error}") from error
    with server:
        print(f"{len(engine)} documents at {server.url}", flush=True)
        server.serve_forever()


def _compare(options, overrides):
    from zsjax.evaluation import compare

    print(compare.comparison_table(compare.compare_runs(
        options.workdir, pathlib.Path(options.other_workdir), first_seeds=options.seeds, second_seeds=options.other_seeds)),
          end="")


def _report(options, overrides):
    from zsjax import report

    if not any((options.workdir / name).is_file() for name in ("config.json", "metrics.jsonl")):
        what = "neither config.json nor metrics.jsonl is there" if options.workdir.is_dir() else "no such folder"
        raise UserError(f"{options.workdir} holds no run: {what}; give the folder of a run")
    print(report.write(options.workdir))


def _view(options, overrides):
    from zsjax.report.view_server import TrajectoryServer

    print("reading trajectories ...", flush=True)
    try:
        server = TrajectoryServer(options.workdirs, port=options.port)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at 127.0.0.1:{options.port}: {error}; use --port 0") from error
    with server:
        print(f"{sum(map(len, server.runs))} trajectories at {server.url}; Ctrl-C stops", flush=True)
        server.serve_forever()


def _export(options, overrides):
    from zsjax.run.export import export

    print(export(find_config(options, overrides), options.workdir, pathlib.Path(options.out)))


def _import(options, overrides):
    from zsjax.data.row_files import ENDINGS

    out = pathlib.Path(options.out)
    if options.file.endswith(ENDINGS):
        from zsjax.run.import_searches import import_searches as convert
    else:
        from zsjax.models.checkpoints.gguf import import_gguf as convert
    convert(options.file, out)
    print(out)


def _conversations(options, overrides):
    from zsjax.report.conversations import write_conversations
    from zsjax.report.trajectory_index import Filters
    from zsjax.rollout.policy_prompt import PolicyTemplate

    prompts = find_config(options, overrides).prompts
    count = write_conversations(
        options.workdir, options.out, form=options.form, filters=Filters(low=options.low, file=options.file),
        prompt=PolicyTemplate.load(prompts.policy).render if prompts.chat else None)
    print(f"{count} conversations in {options.out}")


if __name__ == "__main__":
    sys.exit(leave(main()))
