"""How a run uses its devices: tokens, operations and bytes of its rollouts, and compiled programs.

The figures are computed from finished episodes and from a few counters of the compiled rollout
(`zsjax.rollout.played.RolloutWork`). A token's role tells who wrote it, and its position how much of the cache it read.
`zsjax.monitor.costs` has the price.
"""

import collections
import functools
import time

import jax
import numpy as np

from zsjax import types
from zsjax.models.cache import cache_dtype, init_cache
from zsjax.models.decoder import DecoderConfig, cast_matrices
from zsjax.models.flops import forward_flops
from zsjax.models.quant import num_bytes
from zsjax.rollout.played import Played
from zsjax.search.simulator.simulator import Simulator

METRICS = (
    *(types.Metric(f"speed/{name}_tokens_per_second", f"{what}, over the time of the rollouts",
                   "tokens per second", 0.0, chart="Writing", curve=curve)
      for name, what, curve in (("policy", "tokens that the policy wrote", "policy"),
                                ("document", "tokens of documents that were shown", "documents shown"))),
    *(types.Metric(f"prefill/{name}", "tokens read over tokens read and drawn; a group's prompt counts once",
                   "share of tokens", 0.0, 1.0, chart="Prefill", curve=name) for name in ("policy", "simulator")),
    types.Metric("prefill/operations", "prefill's share of both models' estimated operations", "share of operations", 0.0,
                 1.0, chart="Prefill", curve="operations, both"),
    *(types.Metric(f"cache_bytes/{name}", "keys and values that are allocated for decoding, in one shard of the rows",
                   "bytes", 0.0, chart="Caches", curve=name) for name in ("policy", "simulator")),
    types.Metric("speed/bandwidth_share", "bytes that decoding had to read, over time and copy bandwidth: a lower bound",
                 "share of the measured copy", 0.0, chart="Bandwidth reached in decoding", curve="at least"),
    types.Metric("speed/copy_bandwidth", "measured, of this host's first device", "bytes per second", 0.0),
    types.Metric("time/play", "time of the rollouts", "seconds", 0.0),
    types.Metric("compile/step", "programs compiled in the step", "programs", 0.0, healthy="0 after the first step",
                 chart="Compiled programs", curve="compiled"),
    types.Metric("compile/cached", "programs that the persistent cache held", "programs", 0.0, chart="Compiled programs",
                 curve="from the persistent cache"),
    types.Metric("compile/total", "programs compiled since the process began to count", "programs", 0.0),
    types.Metric("time/compile", "compiling and reading compiled programs", "seconds", 0.0),
)


class RolloutAccount:
    """The work of the rollouts since the last `take`, over all devices.

    Only useful work counts: tokens of episodes and cache slots that hold tokens, no padding. A share of a limit is
    therefore a lower bound.
    """

    def __init__(self, policy: DecoderConfig, engine, *, devices: int = 1, cache: str = "model"):
        """policy: its shape. engine: the work of a `Simulator` in the compiled program counts as well. devices: number
        over which rows and weights are cut. cache: config.policy.cache_dtype."""
        self.policy, self.devices, self.bandwidth = policy, devices, copy_bandwidth()
        self.simulator = engine if isinstance(engine, Simulator) else None
        self._caches = {"policy": cache, "simulator": getattr(self.simulator, "cache_dtype", "model")}
        self._weights: dict[str, int] = {}
        self._total: collections.Counter = collections.Counter()
        self._cache_bytes: dict[str, float] = {}

    def add(self, params, played: Played, seconds: float):
        """Counts a rollout. params: the policy's. played: numpy. seconds: its duration."""
        episodes, work = played.episodes, played.work
        total, roles = self._total, np.asarray(episodes.roles)
        seen = np.broadcast_to(np.arange(1, roles.shape[1] + 1), roles.shape)  # tokens that a token sees, itself included
        once = np.unique(episodes.group_id, return_index=True)[1]  # a group's prompt is read once
        drawn, inserted = roles == types.POLICY, np.isin(roles, (types.DOCUMENT, types.TEMPLATE))
        prompts = roles[once] == types.PROMPT
        steps = int(np.sum(work.policy_steps))
        self._of_model("policy", self.policy, params, steps, drawn=int(drawn.sum()), attended=int(seen[drawn].sum()),
                       read=int(inserted.sum() + prompts.sum()),
                       pairs=int(seen[inserted].sum() + seen[once][prompts].sum()))
        if self.simulator is not None and work.tally is not None:
            read, written, attended = (float(np.sum(x)) for x in (work.tally.read, work.tally.drawn, work.tally.attended))
            self._of_model("simulator", self.simulator.config, self.simulator.params, int(np.sum(work.simulator_steps)),
                           drawn=written, attended=attended, read=read, pairs=read * self.simulator.prompt_size / 2)
        for name in ("policy", "simulator"):
            if (size := getattr(work, f"{name}_cache")) is not None:
                self._cache_bytes[f"cache_bytes/{name}"] = float(np.max(size))
        total.update({"seconds": seconds, "policy_tokens": int(drawn.sum()),
                      "document_tokens": int((roles == types.DOCUMENT).sum())})

    def take(self) -> dict[str, float]:
        """The figures of `METRICS` since the last call, {} if nothing was played.

        Of the simulator, all drawn tokens count, shown or not, and its prompts count with their longest possible length.
        Decoding reads the weights at each step, in the dtype of their use, and each row's live cache for each drawn token.
        The time of the rollouts includes prefill and the host's part, so bandwidth_share is a lower bound; for models
        that fit into a processor's caches it may exceed 1.
        """
        total, self._total = self._total, collections.Counter()
        if not total["seconds"]:
            return {}
        tokens = {f"prefill/{name}": total[f"{name}_read"] / both for name in ("policy", "simulator")
                  if (both := total[f"{name}_read"] + total[f"{name}_drawn"])}
        return {
            **{f"speed/{name}_per_second": total[name] / total["seconds"] for name in ("policy_tokens", "document_tokens")},
            **tokens,
            "prefill/operations": total["prefill_flops"] / (total["prefill_flops"] + total["decode_flops"]),
            **self._cache_bytes,
            "speed/bandwidth_share": total["bytes"] / self.devices / total["seconds"] / self.bandwidth,
            "speed/copy_bandwidth": self.bandwidth,
            "time/play": total["seconds"],
        }

    def _of_model(self, name, model, params, steps, *, drawn, attended, read, pairs):
        """steps: decode steps of all shards together. attended: cache slots that drawn tokens saw. pairs: (token, token it
        sees) of the tokens that were read."""
        if name not in self._weights:
            self._weights[name] = decoding_bytes(params, model)
        self._total.update({
            f"{name}_read": read, f"{name}_drawn": drawn, "prefill_flops": forward_flops(model, read, pairs, 0),
            "decode_flops": forward_flops(model, drawn, attended, drawn),
            "bytes": steps * self._weights[name] + attended * slot_bytes(model, self._caches[name])})


def decoding_bytes(params, model: DecoderConfig) -> int:
    """Bytes of weights that a decode step reads, in the dtype of their use. An embedding that is not the unembedding as
    well is not counted: only a few of its rows are read."""
    params = jax.eval_shape(lambda params: cast_matrices(params, model), params)
    return num_bytes(params) - (0 if model.tie_embeddings else num_bytes(params["embed_tokens"]))


def slot_bytes(model: DecoderConfig, dtype: str = "model") -> int:
    """Bytes of keys and values of one token, in all layers, of a cache of this `cache_dtype`."""
    cache = jax.eval_shape(lambda: init_cache(model, 1, 1, cache_dtype(model, dtype)))
    return num_bytes((cache.k, cache.v))


@functools.cache  # once a process
def copy_bandwidth(seconds: float = 0.1) -> float:
    """Bytes a second that this host's first device reads and writes while it copies an array larger than any cache: the
    best of `seconds` of copies."""
    device = jax.local_devices()[0]
    size = 1 << 28
    x = jax.device_put(np.zeros(size // 4, np.float32), device)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: on CPU a fresh array costs ten times as much
    x = copy(x).block_until_ready()
    taken = []
    while sum(taken) < seconds or len(taken) < 3:  # a single copy may meet a busy machine
        start = time.perf_counter()
        x = copy(x).block_until_ready()
        taken.append(time.perf_counter() - start)
    return 2 * size / min(taken)


_seen = collections.Counter()  # of this process: programs, those from the persistent cache, and seconds


@functools.cache
def _listen():
    def on_duration(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":  # cached programs are reported, too
            _seen.update(programs=1, seconds=seconds)

    def on_event(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            _seen.update(cached=1)

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)


def _compiled(seen: collections.Counter) -> int:
    """Programs that were compiled and not read from the persistent cache."""
    return seen["programs"] - seen["cached"]


class CompileCount:
    """Counts the programs that this process compiles from now on, by jax's own events."""

    def __init__(self):
        _listen()
        self._start = self._last = collections.Counter(_seen)

    def take(self) -> dict[str, float]:
        """The compile/* figures of `METRICS` since the last call. An operation outside of any jit counts as a program."""
        now = collections.Counter(_seen)
        taken = {"compile/step": _compiled(now - self._last), "compile/total": _compiled(now - self._start),
                 "compile/cached": now["cached"] - self._last["cached"],
                 "time/compile": now["seconds"] - self._last["seconds"]}
        self._last = now
        return taken
