r"""The command line: reads flags, finds every problem of the config, then runs what is asked for.

    python -m zsjax.launch [COMMAND] --config experiments/X.py[:arg] --workdir DIR [--config.field=value ...]

`python -m zsjax.launch --help` lists the commands. A mistake of the user's ends in one message and exit code 2, never
in a traceback; nothing but this module reads flags.
"""

import argparse
import dataclasses
import importlib.util
import inspect
import json
import logging
import os
import pathlib
import sys
import traceback
import types

from zsjax.config import Config, from_json, resolve
from zsjax.errors import ConfigError, InputError, UserError, reading

# Command -> (stages that it runs, what --help says). None is all of config.stages.
STAGE_COMMANDS = {
    "run": (None, "all of config.stages, in order; an interrupted run in WORKDIR goes on where it was (the default)"),
    "train": (("train",), "only the reinforcement learning"),
    "tune-simulator": (("tune_simulator",), "only the tuning of the simulator on collected trajectories"),
    "warm-start": (("warm_start",), "only the supervised training of the policy on episodes, before the rest"),
    "collect": (("collect",), "only the collection of trajectories with the real engine"),
    "evaluate": (("evaluate",), "only the evaluation of the run's policy with config.search.eval_engine"),
}
OTHER_COMMANDS = {
    "ask": 'one question: ask "Who ...?" prints the episode, coloured by who wrote what',
    "plan": "whether the run fits a --target, and the least time of a step; needs neither the target nor weights",
    "serve-corpus": "a /retrieve server (Search-R1, FlashRAG) over a corpus: serve-corpus CORPUS [--host H] [--port 8000]",
    "compare": "the run's evaluation beside another's, question by question: compare OTHER_WORKDIR",
    "report": "WORKDIR/report.html from what the run has written so far",
    "export": "the run's policy as a Hugging Face folder: export OUT",
    "import": "a GGUF file as a Hugging Face folder, weights and tokenizer: import FILE.gguf OUT",
}
# Commands with an argument -> what is said when it is missing.
ARGUMENTS = {"ask": 'ask needs a question: ask "Who ...?"', "export": "export needs a folder: export OUT",
             "compare": "compare needs another run's folder: compare OTHER_WORKDIR",
             "import": "import needs a file and a folder: import FILE.gguf OUT",
             "serve-corpus": "serve-corpus needs a corpus: a .jsonl[.gz] or .parquet of {id, title, text}"}
COMMANDS = (*STAGE_COMMANDS, *OTHER_COMMANDS)
ASK_DEFAULT = pathlib.Path("experiments/tiny_world.py")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line (without the program's name). Returns 0, 2 after a mistake, 130 if interrupted."""
    try:
        options, overrides = parse_flags(sys.argv[1:] if arguments is None else arguments)
        _show_logs(sys.stderr if options.json else sys.stdout)
        keep_compiled_programs()
        if options.distributed or options.hosts:
            from zsjax.parallel import hosts

            hosts.initialize(options.hosts or "")
        run_command(options, overrides)
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)


def parse_flags(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """(options, {dotted field: text}) of a command line. Ends the process: code 2 on a wrong flag, 0 after --help."""
    commands = {**{name: text for name, (_, text) in STAGE_COMMANDS.items()}, **OTHER_COMMANDS}
    width = max(map(len, commands)) + 2
    parser = argparse.ArgumentParser(
        prog="python -m zsjax.launch", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [COMMAND] --config experiments/X.py[:arg] --workdir DIR [--config.field=value ...]",
        description="commands:\n" + "\n".join(f"  {name:{width}}{text}" for name, text in commands.items()))
    parser.add_argument("command", nargs="?", default="run", metavar="COMMAND", help="see above; run if left out")
    parser.add_argument("argument", nargs="?", metavar="ARGUMENT", help="the question of ask, the folder of export, the file of import")
    parser.add_argument("out", nargs="?", type=pathlib.Path, metavar="OUT", help="the folder of import")
    parser.add_argument("--config", metavar="F.py[:arg]",
                        help="experiment file with get_config(arg); left out, WORKDIR/config.json of a run that began")
    parser.add_argument("--workdir", type=pathlib.Path, metavar="DIR", help="the run's folder")
    parser.add_argument("--target", metavar="CHIP:NUMBER", help="of plan: a100-80gb:8, h100, h200, v5e:16, v5p:8, v6e:16")
    parser.add_argument("--estimate", action="store_true", help="of plan: do not compile for TPUs, which takes minutes")
    parser.add_argument("--distributed", action="store_true",
                        help="join the other hosts of the job, found from SLURM, Cloud TPU, Kubernetes or Open MPI")
    parser.add_argument("--hosts", metavar="ADDRESS:PORT,COUNT,INDEX",
                        help="join hosts that cannot be found: the first one's address, how many, and which this is")
    parser.add_argument("--json", action="store_true", help="of ask: the whole episode as JSON instead")
    parser.add_argument("--host", default="127.0.0.1", help="of serve-corpus")
    parser.add_argument("--port", type=int, default=8000, help="of serve-corpus; 0: any free one")
    options, rest = parser.parse_known_args(arguments)
    overrides = {}
    for flag in rest:
        field, equals, text = flag.removeprefix("--config.").partition("=")
        if not flag.startswith("--config."):
            parser.error(f"unknown argument {flag!r}; config fields are set as --config.field=value")
        if not equals:
            parser.error(f"{flag} has no value; write {flag}=VALUE")
        overrides[field] = text
    if options.command not in COMMANDS:
        parser.error(f"unknown command {options.command!r}; one of {', '.join(COMMANDS)}")
    if options.argument is not None and options.command not in ARGUMENTS:
        parser.error(f"{options.command} takes no argument, but was given {options.argument!r}")
    if options.argument is None and options.command in ARGUMENTS:
        parser.error(ARGUMENTS[options.command])
    if (options.out is None) == (options.command == "import"):
        parser.error(ARGUMENTS["import"] if options.command == "import"
                     else f"{options.command} takes one argument, but was given {options.out} as well")
    if (options.target is None) == (options.command == "plan"):
        parser.error("plan needs a target, such as --target a100-80gb:8" if options.command == "plan"
                     else f"{options.command} takes no --target; plan does")
    if options.workdir is None and options.command not in ("ask", "plan", "serve-corpus", "import"):
        parser.error("give --workdir DIR, the run's folder")
    return options, overrides


def keep_compiled_programs():
    """Compiled programs are kept between runs in .jax_cache, or where JAX_COMPILATION_CACHE_DIR says (empty: nowhere).

    The same values as in launch/env.sh. jax reads them when it is imported; a program that has imported it and calls
    `main` has decided for itself.
    """
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(".jax_cache").absolute()))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def run_command(options: argparse.Namespace, overrides: dict[str, str]):
    """Runs one command. Imports what it needs when it needs it: a wrong config is told in a second."""
    command, workdir = options.command, options.workdir
    if command == "report":
        from zsjax import report

        if not workdir.is_dir():
            raise UserError(f"there is no run in {workdir}: no such folder")
        print(report.write(workdir))
        return

    if command == "compare":
        from zsjax.evaluation import compare

        print(compare.comparison_table(compare.compare_runs(workdir, pathlib.Path(options.argument))), end="")
        return
    if command == "import":
        from zsjax.models.checkpoints.gguf import import_gguf

        import_gguf(options.argument, options.out)
        print(options.out)
        return
    if command == "serve-corpus":
        serve_corpus(options, overrides)
        return

    stages = STAGE_COMMANDS[command][0] if command in STAGE_COMMANDS else None
    config = _find_config(options, overrides, stages)
    if command == "plan":
        from zsjax import plan

        print(plan.describe(plan.make_plan(config, options.target, compiles=not options.estimate)))
    elif command == "ask":
        from zsjax import report
        from zsjax.run.ask import ask

        if options.json:
            print(json.dumps(ask(options.argument, config, workdir), ensure_ascii=False))
        else:
            report.print_result(ask(options.argument, config, workdir, show=report.episode_printer()))
    elif command == "export":
        from zsjax.run.export import export

        print(export(config, workdir, pathlib.Path(options.argument)))
    else:
        from zsjax.run import pipeline

        _check_devices(config)
        pipeline.run(config, workdir, stages=stages)


def serve_corpus(options: argparse.Namespace, overrides: dict[str, str]):
    """Serves BM25 over a corpus until it is interrupted (or another index: --config.search.eval_engine=dense)."""
    from zsjax.run import build
    from zsjax.search.server import RetrievalServer

    overrides = {"stages": "report", "search.index_dir": "" if options.workdir is None else "indexes"} | overrides
    config = resolve(None, overrides, check=False)
    name = config.search.eval_engine
    if name not in ("bm25", "dense"):
        raise UserError(f"search.eval_engine = {name!r}: a corpus is served by bm25 or dense")
    try:
        engine = build.engine(name, config, options.argument, workdir=options.workdir or ".")
    except InputError as error:
        raise UserError(f"cannot serve {options.argument}: {error}") from error
    try:
        server = RetrievalServer(engine, host=options.host, port=options.port, topk=config.search.num_documents)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {options.host}:{options.port}: {error}") from error
    with server:
        print(f"{len(engine)} documents at {server.url}", flush=True)
        server.serve_forever()


def _find_config(options, overrides, stages) -> Config:
    """The resolved config of --config, or of the run in WORKDIR; checked for `stages`, too, if they are given."""
    from zsjax.config.checks import find_problems

    carried = options.workdir / "config.json" if options.workdir is not None else None
    if options.config is not None:
        config = load_experiment(options.config)
    elif carried is not None and carried.is_file():
        try:
            with reading(carried):
                config = from_json(carried.read_text())
        except ValueError as error:
            raise UserError(f"{carried} cannot be read: {error}") from error
    elif options.command == "ask":
        found = [folder / ASK_DEFAULT for folder in (pathlib.Path(), pathlib.Path(__file__).parents[1])]
        config = load_experiment(str(next((path for path in found if path.is_file()), found[0])))
    else:
        raise UserError(f"give --config F.py, an experiment file{_known_experiments()}")
    config = resolve(config, overrides, files=options.command != "plan")
    if stages:  # the run's own config.stages stay as they are; what this command needs of the rest must be there
        problems = find_problems(dataclasses.replace(config, stages=stages))
        if problems:
            raise ConfigError(problems)
    return config


def load_experiment(path_and_arg: str):
    """The ConfigDict of `F.py[:arg]`: what get_config(arg) of the file returns.

    Raises:
      UserError: no such file, no get_config in it, or an error in it, with file and line.
    """
    path, _, arg = path_and_arg.partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(f"no experiment file {path} (looked in {os.getcwd()}){_known_experiments()}")
    try:
        spec = importlib.util.spec_from_file_location(f"zsjax_experiment_{pathlib.Path(path).stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not isinstance(get_config, types.FunctionType):
            raise UserError(f"{path} has no function get_config(arg=None)")
        takes = inspect.signature(get_config).parameters
        if arg and not takes:
            raise UserError(f"get_config() of {path} takes no argument, but was given {arg!r}")
        config = get_config(arg or None) if takes else get_config()
        if config is None:
            raise UserError(f"get_config of {path} returns nothing; end it with `return c`, the config that it made")
        return config
    except UserError:
        raise
    except Exception as error:  # whatever an experiment file may do wrong
        here = os.path.abspath(path)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__)
                  if os.path.abspath(frame.filename) == here]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else "?"
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {error}") from error


def _known_experiments():
    known = sorted(map(str, pathlib.Path("experiments").glob("*.py")))
    return f"; there are {', '.join(known)}" if known else ""


def _check_devices(config):
    import jax

    from zsjax.config.checks import find_device_problems

    problems = find_device_problems(config, jax.device_count(), jax.process_count())
    if problems:
        raise ConfigError(problems)


def _show_logs(stream):
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=stream)
    for noisy in ("jax", "absl", "orbax", "httpx", "bm25s", "etils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
