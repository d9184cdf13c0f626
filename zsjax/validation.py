"""What a config may say beyond its types: ranges, names, combinations, files. Every problem is found, none is raised.

Nothing here touches a device: `find_problems` runs before jax has looked for one, and `find_device_problems` is asked
once their number is known.
"""

import dataclasses
import inspect
import math
import os
import pathlib

from zsjax.config import STAGES, Config, Problem

ENGINES = ("simulator", "bm25", "empty", "dense", "http", "serpapi", "chat", "mixed")
EVAL_ENGINES = ("bm25", "empty", "dense", "http", "serpapi", "chat", "simulator")
REAL_ENGINES = ("bm25", "dense", "http", "serpapi")
MIX_SCHEDULES = ("zero_search", "constant", "linear", "cosine")
CURRICULA = (*MIX_SCHEDULES, "step", "adaptive")
RATES = ("constant", "linear", "cosine")
REDUCTIONS = ("token_mean", "sequence_mean", "fixed_length")
DTYPES = ("float32", "bfloat16", "float16")
TEMPLATES = ("default", "tiny_world")
ATTENTION = ("auto", "xla", "cudnn", "splash")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
POLICY_TEMPLATES = (*TEMPLATES, "direct", "chain_of_thought", "rag", "search_agent")
SIMULATOR_TEMPLATES = (*TEMPLATES, "prompted", "tiny_world_prompted")
BASELINES = ("direct", "chain_of_thought", "rag", "interleaved", "search_agent", "no_search", "best_of_n", "tree_search",
             "trajectory_sft")
WORLDS = ("tiny_world:train", "tiny_world:eval")
# A shape that `init="random"` must give; vocab_size is the tokenizer's where it is left out.
SHAPE = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
SUPERVISED = ("pretrain", "pretrain_simulator", "tune_simulator", "trajectory_sft")


def find_problems(config: Config, *, files: bool = True) -> list[Problem]:
    """All that is wrong with a config of the right types, in the order of its fields.

    files: whether the files and folders that it names must be there; a plan of a run needs none.
    """
    found = _Found(config, files)
    _check_stages(found, config)
    _check_models(found, config)
    _check_data(found, config)
    _check_rollout(found, config)
    _check_algorithm(found, config)
    _check_train(found, config)
    _check_supervised(found, config)
    _check_rest(found, config)
    return found.problems


def find_device_problems(config: Config, num_devices: int, num_hosts: int = 1) -> list[Problem]:
    """What is wrong once the number of devices is known: the mesh, and rows that do not divide over it.

    Questions need not divide: a rollout fills up its shape and drops the surplus rows.
    """
    found = _Found(config)
    apart, a_host, copy = config.mesh.simulator_devices, num_devices // num_hosts, config.mesh.simulator_tensor
    if apart >= a_host:
        found.add("mesh.simulator_devices", f"leaves none of a host's {a_host} devices for the policy",
                  f"give less than {a_host}, or 0 to share them")
        return found.problems
    if apart and (heads := _num_heads(config, config.simulator)) % copy:
        found.add("mesh.simulator_tensor", f"does not divide the {heads} heads of simulator.init", "give a divisor of that")
    num_devices -= apart * num_hosts
    axes = {name: getattr(config.mesh, name) for name in ("data", "fsdp", "tensor")}
    fixed = math.prod(size for size in axes.values() if size > 0)
    free = [name for name, size in axes.items() if size == -1]
    if num_devices % fixed or (not free and fixed != num_devices):
        name = free[0] if free else "data"
        found.add(f"mesh.{name}", f"{axes} does not fit {num_devices} devices" + " without the simulator's" * (apart > 0),
                  f"the sizes must multiply to {num_devices}; one may be -1 for what is left")
        return found.problems
    left = num_devices // fixed
    shards = math.prod(left if axes[name] == -1 else axes[name] for name in ("data", "fsdp"))
    rows = config.train.questions_per_step * config.train.group_size // config.train.minibatches
    if "train" in config.stages and rows % shards:
        found.add("train.questions_per_step",
                  f"{rows} rows a minibatch (questions_per_step x group_size / minibatches) do not divide over "
                  f"{shards} devices", f"make the rows a multiple of {shards}, or set mesh")
    if "train" in config.stages and 0 < config.train.microbatch_rows < rows and config.train.microbatch_rows % shards:
        found.add("train.microbatch_rows", f"does not divide over {shards} devices", f"give a multiple of {shards}")
    tensor = num_devices // shards
    if num_devices // num_hosts % tensor:
        found.add("mesh.tensor", f"reaches over hosts of {num_devices // num_hosts} devices", "give a divisor of that")
    for name in ("policy", "simulator")[:1 if apart else 2] if tensor > 1 else ():
        heads = _num_heads(config, getattr(config, name))
        if heads % tensor:
            found.add("mesh.tensor", f"does not divide the {heads} heads of {name}.init", "give a divisor of that")
    alone = [stage for stage in config.stages if stage in (*SUPERVISED, "collect")]
    if num_hosts > 1 and alone:
        found.add("stages", f"{', '.join(alone)} run on one host",
                  "run them there first, by their commands, and then only train, evaluate and report on many")
    if num_hosts > 1 and "evaluate" in config.stages and "trajectory_sft" in config.evaluate.baselines:
        found.add("evaluate.baselines", "trajectory_sft tunes on one host", "leave it out, or evaluate on one host")
    if num_hosts > 1 and "serpapi" in _used_engines(config):
        found.add("search.remote.cache_dir", "results and account of web search are one host's", "run it on one host")
    return found.problems


def _num_heads(config, model):
    """Query heads of a model that the run uses, 0 where they cannot be known before it is loaded or made."""
    from zsjax.data.assets import asset_path
    from zsjax.models.hf_config import read_config
    from zsjax.models.hub import PREFIX

    if model is config.simulator and not _uses_simulator(config):
        return 0
    if model.init == "random":
        return model.shape["num_heads"]
    if model.init.startswith(PREFIX):  # not downloaded only to look
        return 0
    try:
        return read_config(asset_path(model.init)).num_heads
    except (OSError, ValueError):
        return 0


class _Found:
    """Problems of one config, and the few ways to look for them. Fields are dotted names."""

    def __init__(self, config, files=True):
        self.config, self.files = config, files
        self.problems: list[Problem] = []

    def value(self, field):
        value = self.config
        for name in field.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        return value

    def add(self, field, reason, mend):
        self.problems.append(Problem(field, self.value(field), reason, mend))

    def one_of(self, field, names):
        if self.value(field) not in names:
            self.add(field, "unknown", f"give one of {', '.join(names)}")

    def at_least(self, low, *fields):
        for field in fields:
            value = self.value(field)
            if value is not None and not value >= low:  # so that NaN is refused
                self.add(field, "too small", f"give {low} or more")

    def within(self, low, high, *fields):
        for field in fields:
            value = self.value(field)
            if value is not None and not low <= value <= high:
                self.add(field, "out of range", f"give {low} to {high}")

    def positive(self, *fields):
        for field in fields:
            value = self.value(field)
            if value is not None and not 0 < value < math.inf:
                self.add(field, "not positive", "give a number above 0")


def _check_stages(found, config):
    if not config.stages:
        found.add("stages", "nothing to do", f"name some of {', '.join(STAGES)}")
    unknown = [stage for stage in config.stages if stage not in STAGES]
    if unknown:
        found.add("stages", f"{unknown[0]!r} is unknown", f"name some of {', '.join(STAGES)}")
    elif list(config.stages) != sorted(set(config.stages), key=STAGES.index):
        found.add("stages", "repeated or out of order", f"give each once, in the order {', '.join(STAGES)}")


def _check_models(found, config):
    _check_path(found, "tokenizer")
    for name, needed in (("policy", True), ("simulator", _uses_simulator(config))):
        model = getattr(config, name)
        found.one_of(f"{name}.dtype", DTYPES)
        found.one_of(f"{name}.param_dtype", DTYPES)
        found.one_of(f"{name}.attention", ATTENTION)
        found.one_of(f"{name}.quantize", ("none", "int8"))
        found.one_of(f"{name}.cache_dtype", ("model", "int8"))
        found.at_least(0, f"{name}.lora.rank")
        found.positive(f"{name}.lora.alpha")
        if model.lora.rank > 0 and not (model.lora.targets and set(model.lora.targets) <= set(LORA_TARGETS)):
            found.add(f"{name}.lora.targets", "not projections", f"name some of {', '.join(LORA_TARGETS)}")
        if model.init == "random":
            if needed:
                _check_shape(found, f"{name}.shape", model.shape)
        else:
            if needed:
                _check_path(found, f"{name}.init")
            if model.shape:
                found.add(f"{name}.shape", f"the shape is read from {model.init}", f"remove it, or set {name}.init to "
                          "'random'")
            if model.positional_bias_init:
                found.add(f"{name}.positional_bias_init", "only random weights can be given a start",
                          f"set it to false, or {name}.init to 'random'")
    if config.policy.quantize != "none":
        found.add("policy.quantize", "only the frozen simulator is quantized: int8 weights have no gradient",
                  "set it to 'none'")


def _check_shape(found, field, shape):
    from zsjax.models.layers import DecoderConfig

    known = {f.name: f.type for f in dataclasses.fields(DecoderConfig)}
    known = {name: kind for name, kind in known.items() if name not in ("dtype", "attention")}  # fields of their own
    unknown = [name for name in shape if name not in known]
    missing = [name for name in SHAPE if name not in shape]
    if unknown:
        found.add(field, f"{unknown[0]!r} is unknown here", f"known: {', '.join(known)}")
    elif missing:
        found.add(field, f"random weights need {', '.join(missing)}", "give them, or name a checkpoint as init")
    else:
        bad = [name for name in (*SHAPE, "vocab_size")
               if not isinstance(shape.get(name, 1), int) or shape.get(name, 1) < 1]
        if bad:
            found.add(field, f"{bad[0]}={shape[bad[0]]!r} is no count", "give a whole number above 0")
            return
        try:
            DecoderConfig(**({"vocab_size": 1} | shape))
        except (TypeError, ValueError) as error:
            found.add(field, str(error), "change the shape")


def _check_path(found, field):
    from zsjax.data.assets import asset_path
    from zsjax.models.hub import PREFIX, hub_name

    value = found.value(field)
    if value.startswith(PREFIX):  # whether the hub has it is seen when it is fetched
        if hub_name(value) is None:
            found.add(field, "no name of the Hugging Face hub", f"give {PREFIX}OWNER/NAME, such as {PREFIX}Qwen/Qwen2.5-3B")
        return
    try:
        path = asset_path(value)
    except FileNotFoundError as error:
        found.add(field, "no such asset", str(error).partition("; ")[2] or str(error))
        return
    if found.files and not path.exists():
        found.add(field, f"no file or folder there (looked in {os.getcwd()})", "check the path")


def _check_data(found, config):
    for field in ("data.train", "data.eval"):
        _check_source(found, field, (".jsonl", ".jsonl.gz", ".parquet"), tfds=True)
    for field in ("data.corpus", "data.eval_corpus"):
        _check_source(found, field, (".jsonl", ".jsonl.gz", ".parquet"), tfds=False)
    for name in config.data.benchmarks:
        if "." in name or "/" in name:
            found.add("data.benchmarks", f"{name!r} is no name", "give names without '.' and '/'")
            continue
        _check_source(found, f"data.benchmarks.{name}", (".jsonl", ".jsonl.gz", ".parquet"), tfds=True)
    found.at_least(1, "data.eval_limit")
    if config.world:
        _check_world(found, config)


def _check_source(found, field, endings, *, tfds):
    source = str(found.value(field)).partition("#")[0]
    known = f"a path that ends in {', '.join(endings)}, {' or '.join(WORLDS)}" + (", or tfds:NAME" if tfds else "")
    if source in WORLDS or (tfds and source.startswith("tfds:") and len(source) > 5):
        return
    if source.startswith(("tiny_world:", "tfds:")) or not source.endswith(endings):
        found.add(field, "not a source", f"give {known}")
    elif found.files and not pathlib.Path(source).is_file():
        found.add(field, f"no such file (looked in {os.getcwd()})", "check the path")


def _check_world(found, config):
    from zsjax.data import tiny_world

    known = [name for function in (tiny_world.resolve, tiny_world.make_world)
             for name, parameter in inspect.signature(function).parameters.items()
             if parameter.kind == parameter.KEYWORD_ONLY and name != "taken"]
    for name in config.world:
        if name not in known:
            found.add("world", f"{name!r} is unknown", f"known: {', '.join(known)}")


def _check_rollout(found, config):
    search, rollout = config.search, config.rollout
    found.one_of("search.engine", ENGINES)
    found.one_of("search.eval_engine", EVAL_ENGINES)
    found.one_of("search.noise_per", ("search", "document"))
    found.within(1, 20, "search.num_documents")
    found.at_least(1, "search.max_document_tokens", "search.max_query_tokens", "rollout.max_turns",
                   "rollout.max_turn_tokens", "rollout.max_prompt_tokens", "rollout.capacities")
    found.at_least(0, "rollout.rows", "rollout.simulator_slots", "rollout.lanes")
    found.at_least(1, "rollout.visit_every", "rollout.search_batches")
    found.within(0, 1, "rollout.busy")
    found.within(0, 10, "search.temperature")
    if not 0 < search.top_p <= 1:
        found.add("search.top_p", "out of range", "give a probability above 0, up to 1")
    # At temperature 0 every episode of a group is the same one and the advantages vanish.
    found.positive("rollout.temperature")
    _check_engines(found, config)
    need = rollout.max_prompt_tokens + rollout.max_turn_tokens
    if rollout.max_tokens < need:
        found.add("rollout.max_tokens", "smaller than a prompt and one turn "
                  f"(max_prompt_tokens {rollout.max_prompt_tokens} + max_turn_tokens {rollout.max_turn_tokens})",
                  f"give {need} or more")
    for field, templates in (("prompts.policy", POLICY_TEMPLATES), ("prompts.simulator", SIMULATOR_TEMPLATES)):
        name = found.value(field)
        if name not in templates and not pathlib.Path(name).is_file():
            found.add(field, "no such template or file", f"give {', '.join(templates)}, or a template file's path")
    try:
        line = search.document_format.format(i=1, title="", text="text")
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        found.add("search.document_format", f"cannot be filled ({type(error).__name__}: {error})",
                  "use the slots {i}, {title}, {text} only")
    else:
        if "text" not in line or "\n" in line:
            found.add("search.document_format", "a document is one line that holds {text}", "see the default")


def _check_engines(found, config):
    """What the engines that are used need beside their names."""
    search, used = config.search, _used_engines(config)
    remote = search.remote
    found.one_of("search.reveal_gold", ("always", "on_target", "never"))
    if search.rerank.candidates and not search.num_documents <= search.rerank.candidates <= 20:
        found.add("search.rerank.candidates", f"are not between search.num_documents = {search.num_documents} and 20",
                  "give so many, or 0 for none")
    found.at_least(0, "search.rerank.learning_rate")
    found.at_least(1, "search.rerank.buckets")
    found.one_of("search.mix.real", REAL_ENGINES)
    found.one_of("search.mix.schedule", MIX_SCHEDULES)
    found.within(0, 1, "search.mix.start", "search.mix.end")
    found.positive("search.mix.base", "search.remote.timeout")
    found.at_least(0, "search.remote.retries", "search.remote.budget")
    found.at_least(1, "search.remote.concurrency", "search.remote.max_bytes")
    if used & {"http", "chat"} and not remote.url.startswith(("http://", "https://")):
        found.add("search.remote.url", "is no address of a server", "give http://HOST:PORT of the server")
    if "chat" in used and not remote.model:
        found.add("search.remote.model", "the chat server must be told which model", "give the name the server knows it by")
    key = remote.key_env or ("SERPAPI_API_KEY" if "serpapi" in used else "")
    if found.files and used & {"serpapi", "chat"} and key and not os.environ.get(key):
        found.add("search.remote.key_env", f"the environment has no {key}", f"set the environment variable {key}")
    if "dense" in used:
        if not search.embedder:
            found.add("search.embedder", "dense retrieval needs one", "give a checkpoint, or package.module:function")
        elif ":" not in search.embedder.removeprefix("asset:"):
            _check_path(found, "search.embedder")


def _used_engines(config) -> set[str]:
    """Names of the engines that the config's stages search with."""
    used = {config.search.eval_engine} if {"train", "evaluate"} & set(config.stages) else set()
    if "train" in config.stages:
        used |= {config.search.mix.real, "simulator"} if config.search.engine == "mixed" else {config.search.engine}
    return used


def _check_algorithm(found, config):
    algorithm = config.algorithm
    found.one_of("algorithm.reduction", REDUCTIONS)
    found.one_of("algorithm.kl_in", ("loss", "reward"))
    found.at_least(0, *(f"algorithm.{name}" for name in (
        "kl_coef", "entropy_coef", "clip_low", "clip_high", "kl_target", "sampler_clip", "refill_rounds")))
    found.at_least(1, "algorithm.kl_horizon")
    found.within(0, 1, "algorithm.gamma", "algorithm.lam")
    if algorithm.kl_kind == "k1" and algorithm.kl_in == "loss":
        found.add("algorithm.kl_kind", "as a loss, k1 has an expected gradient of zero",
                  "give k2 or k3, or set algorithm.kl_in to 'reward'")
    else:
        found.one_of("algorithm.kl_kind", ("k1", "k2", "k3"))
    if algorithm.kl_target and not algorithm.kl_coef > 0:
        found.add("algorithm.kl_target", "an adaptive coefficient grows from kl_coef, which is 0",
                  "set algorithm.kl_coef to where it starts")
    if algorithm.dual_clip and not algorithm.dual_clip > 1:
        found.add("algorithm.dual_clip", "bounds the loss at a ratio that no clip has reached", "give more than 1, or 0")
    if algorithm.dual_clip and algorithm.loss == "gspo":
        found.add("algorithm.dual_clip", "the loss 'gspo' has none", "set it to 0, or algorithm.loss to 'ppo_clip'")
    if algorithm.advantage == "gae" and not algorithm.value_model:
        found.add("algorithm.value_model", "the advantage 'gae' needs values", "set it to true")
    if algorithm.refill_rounds and not algorithm.drop_equal_groups:
        found.add("algorithm.refill_rounds", "nothing is dropped that could be replaced",
                  "set algorithm.drop_equal_groups to true")
    unknown = [name for name in algorithm.mask if name not in ("truncated", "overlong")]
    if unknown:
        found.add("algorithm.mask", f"{unknown[0]!r} is unknown", "name some of truncated, overlong")
    from zsjax.rl.credit import load_advantage
    from zsjax.rl.update import load_loss

    _check_function(found, "algorithm.loss", load_loss, "ppo_clip, gspo")
    _check_function(found, "algorithm.advantage", load_advantage, "one of grpo, rloo, reinforce, reinforce_plus_plus, gae")
    _check_reward(found, config.reward)
    _check_curriculum(found, config.curriculum)
    found.at_least(0, "value.clip", "value.warmup_steps")
    _check_optimizer(found, "value.optimizer")
    _check_health(found, config.health)


def _check_function(found, field, load, names):
    try:
        load(found.value(field))
    except Exception as error:  # importing a user's module may raise anything
        found.add(field, str(error).split("\n")[0] or type(error).__name__,
                  f"give {names}, or package.module:function of a module that imports")


def _check_reward(found, reward):
    from zsjax.reward_terms import TERMS, load_term

    if not reward.terms:
        found.add("reward.terms", "no reward at all", "give at least one term, as {'f1': 1.0}")
    for name, weight in reward.terms.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            found.add("reward.terms", f"the weight of {name!r} is no number", "give a finite number")
        try:
            load_term(name)
        except Exception as error:  # importing a user's module may raise anything
            found.add("reward.terms", str(error).split("\n")[0] or type(error).__name__,
                      f"give {', '.join(TERMS)}, or package.module:function")
    if reward.overlong_to and not 0 < reward.overlong_from < reward.overlong_to:
        found.add("reward.overlong_to", f"is not above reward.overlong_from = {reward.overlong_from}",
                  "give policy tokens 0 < overlong_from < overlong_to")
    used = "overlong" in reward.terms or "overlong" in found.config.algorithm.mask
    if used and not reward.overlong_to:
        found.add("reward.overlong_to", "says from where on an episode is overlong", "give policy tokens")


def _check_curriculum(found, curriculum):
    found.one_of("curriculum.schedule", CURRICULA)
    found.within(0, 1, "curriculum.start", "curriculum.end")
    found.positive("curriculum.base")
    found.at_least(0, "curriculum.rate")
    if not 0 <= curriculum.decay < 1:
        found.add("curriculum.decay", "out of range", "give 0 up to, but not, 1")
    if curriculum.schedule == "step":
        if len(curriculum.values) != len(curriculum.boundaries) + 1:
            found.add("curriculum.values", f"{len(curriculum.boundaries)} boundaries need one value more",
                      "give the noise before the first boundary and from each boundary on")
        if any(not 0 <= value <= 1 for value in curriculum.values):
            found.add("curriculum.values", "out of range", "give probabilities, 0 to 1")
        if any(a >= b for a, b in zip(curriculum.boundaries, curriculum.boundaries[1:])):
            found.add("curriculum.boundaries", "do not rise", "give steps in rising order")
    if curriculum.schedule == "adaptive" and curriculum.reverse:
        found.add("curriculum.reverse", "an adaptive curriculum follows the reward, not the step", "set it to false")


def _check_health(found, health):
    found.at_least(1, "health.patience")
    for name, bounds in health.alarms.items():
        numbers = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(
            b is None or (isinstance(b, int | float) and not isinstance(b, bool)) for b in bounds)
        if not numbers or bounds[0] is None is bounds[1]:
            found.add("health.alarms", f"the bounds of {name!r} are not [low, high]",
                      "give two numbers, one of which may be None")


def _check_optimizer(found, prefix):
    found.one_of(f"{prefix}.schedule", RATES)
    found.positive(f"{prefix}.learning_rate")
    found.at_least(0, f"{prefix}.warmup_steps", f"{prefix}.weight_decay", f"{prefix}.clip_norm")
    found.within(0, 1, f"{prefix}.final_fraction")
    for name in ("b1", "b2"):
        if not 0 <= found.value(f"{prefix}.{name}") < 1:
            found.add(f"{prefix}.{name}", "out of range", "give 0 up to, but not, 1")
    from zsjax.rl.optimizer import transformation

    for link in found.value(f"{prefix}.chain"):
        try:
            transformation(link, lambda count: 0.0)
        except Exception as error:  # optax checks arguments in its own ways
            found.add(f"{prefix}.chain", str(error).split("\n")[0] or type(error).__name__,
                      "give dicts of a name in optax and its arguments, as dict(name='scale_by_adam', b1=0.9)")


def _check_train(found, config):
    train = config.train
    _check_optimizer(found, "optimizer")
    counts = [f"train.{name}" for name in ("questions_per_step", "group_size", "minibatches", "logprob_chunk",
                                           "checkpoint_every", "keep_checkpoints", "trajectories_every", "eval_every")]
    found.at_least(1 if "train" in config.stages else 0, "train.steps")
    found.at_least(1, *counts)
    found.at_least(1, "train.epochs")
    found.at_least(0, "train.microbatch_rows", "train.microbatch_tokens", "train.eval_questions")
    from zsjax.models.decoder import REMAT

    found.one_of("train.remat", ("none", *REMAT))
    found.one_of("train.keep", ("all", "reward_spread", "search_depth"))
    if not 0 < train.keep_fraction <= 1:
        found.add("train.keep_fraction", "out of range", "give a share above 0, up to 1")
        return
    if train.keep == "all" and train.keep_fraction < 1:
        found.add("train.keep_fraction", "nothing says what to keep",
                  "set train.keep to 'reward_spread' or 'search_depth', or this to 1")
    if train.microbatch_rows > 0 and train.microbatch_tokens > 0:
        found.add("train.microbatch_tokens", f"train.microbatch_rows = {train.microbatch_rows} cuts already",
                  "set one of the two to 0")
    if config.algorithm.advantage in ("grpo", "rloo") and train.group_size == 1:
        found.add("train.group_size", f"{config.algorithm.advantage} compares the episodes of a group",
                  "give 2 or more, or another algorithm.advantage")
    rows = train.questions_per_step * train.group_size
    product = f"questions_per_step x group_size = {train.questions_per_step} x {train.group_size} = {rows} rows"
    if train.keep != "all":
        rows = round(train.keep_fraction * rows)
        product = f"the {rows} rows that keep_fraction leaves of {product}"
    if train.minibatches > 0 and rows % train.minibatches:
        found.add("train.minibatches", f"does not divide {product}", f"give a divisor of {rows}")
        return
    rows //= max(train.minibatches, 1)
    if train.microbatch_rows > 0 and rows % train.microbatch_rows:
        found.add("train.microbatch_rows", f"does not divide the {rows} rows of a minibatch",
                  f"give a divisor of {rows}")
    shards = max(config.mesh.data, 1) * max(config.mesh.fsdp, 1)
    if rows > 0 and rows % shards:
        found.add("mesh.data", f"{shards} shards (data x fsdp) do not divide the {rows} rows of a minibatch",
                  f"give a divisor of {rows}, or change train.questions_per_step or train.group_size")


def _check_supervised(found, config):
    for stage in SUPERVISED:
        _check_optimizer(found, f"{stage}.optimizer")
        found.at_least(1, f"{stage}.batch_rows", f"{stage}.max_tokens", f"{stage}.checkpoint_every")
        found.at_least(0, f"{stage}.steps")
        if stage in config.stages and getattr(config, stage).steps == 0:
            found.add(f"{stage}.steps", f"the stage {stage!r} would do nothing",
                      "give its steps, or take it from stages")


def _check_rest(found, config):
    found.at_least(1, "collect.episodes", "evaluate.batch_rows", "evaluate.samples")
    if config.evaluate.samples > 1 and config.evaluate.temperature == 0:
        found.add("evaluate.samples", "at temperature 0 every sample is the same", "set evaluate.temperature, or give 1")
    found.within(0, 10, "evaluate.temperature")
    for name in config.evaluate.baselines:
        if name not in BASELINES:
            found.add("evaluate.baselines", f"{name!r} is unknown", f"name some of {', '.join(BASELINES)}")
    found.at_least(2, "evaluate.baseline_samples")
    if "trajectory_sft" in config.evaluate.baselines and "evaluate" in config.stages and not config.trajectory_sft.steps:
        found.add("trajectory_sft.steps", "the baseline would learn nothing", "give its steps")
    found.one_of("collect.label", ("ranking", "answer", "contains", "judge"))
    if config.collect.label == "judge" and "collect" in config.stages:
        _check_judge(found, config.collect.judge)
    found.within(0, 0.5, "collect.hold_out")
    if config.evaluate.drop_best and config.search.eval_engine == "simulator":
        found.add("evaluate.drop_best", "a simulator does not lose documents", "set it to 0, or evaluate with a real engine")
    found.within(0, 1, "evaluate.drop_best", "gates.reading", "gates.useful", "gates.noisy", "gates.leak")
    for axis in ("data", "fsdp", "tensor"):
        size = getattr(config.mesh, axis)
        if size < 1 and size != -1:
            found.add(f"mesh.{axis}", "no size", "give a number of devices, or -1 for what is left")
    found.at_least(0, "mesh.simulator_devices")
    found.at_least(1, "mesh.simulator_tensor")
    apart, copy = config.mesh.simulator_devices, config.mesh.simulator_tensor
    if apart > 0 and _used_engines(config) and "simulator" not in _used_engines(config):
        found.add("mesh.simulator_devices", "nothing would run there: no engine is the simulator", "set it to 0")
    if apart > 0 and copy > 0 and apart % copy:
        found.add("mesh.simulator_tensor", f"does not divide mesh.simulator_devices = {apart}", "give a divisor of that")
    if [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) > 1:
        found.add("mesh.data", "more than one axis is -1", "only one axis can take what is left")


def _check_judge(found, judge):
    from zsjax.search.prompts import JudgeTemplate

    if bool(judge.init) == bool(judge.url):
        found.add("collect.judge.init", f"and collect.judge.url = {judge.url!r}: a judge is the one or the other",
                  "give a checkpoint, or the address of a chat server")
    elif judge.init:
        _check_path(found, "collect.judge.init")
        found.one_of("collect.judge.dtype", DTYPES)
        found.at_least(1, "collect.judge.max_tokens", "collect.judge.batch_rows")
        if judge.tokenizer:
            _check_path(found, "collect.judge.tokenizer")
    else:
        if not judge.url.startswith(("http://", "https://")):
            found.add("collect.judge.url", "is no address of a server", "give http://HOST:PORT/v1 of the server")
        if not judge.model:
            found.add("collect.judge.model", "the chat server must be told which model", "give the name it knows it by")
        if found.files and judge.key_env and not os.environ.get(judge.key_env):
            found.add("collect.judge.key_env", f"the environment has no {judge.key_env}", "set it")
    try:
        JudgeTemplate.load(judge.template)
    except (OSError, ValueError) as error:
        found.add("collect.judge.template", str(error), "give 'default' or a file with the three slots")


def _uses_simulator(config):
    return "simulator" in _used_engines(config) or (
        "tune_simulator" in config.stages and config.search.engine in ("simulator", "mixed"))
