"""The learner: the policy's parameters, and all passes over a batch of episodes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.config.fields import Config
from zsjax.config.named import load_object
from zsjax.errors import InputError
from zsjax.models import lora
from zsjax.models.placement import param_shardings
from zsjax.models.value import init_value
from zsjax.parallel.mesh import TRAIN_RULES, replicated, reshard
from zsjax.rl import credit, roles
from zsjax.rl.algorithms import needs_reference
from zsjax.rl.batch import minibatches
from zsjax.rl.objective import OBJECTIVE_TERMS, load_loss
from zsjax.rl.optimizer import make_optimizers
from zsjax.rl.passes import Passes, make_programs
from zsjax.types import TokenBatch, TrainState


class Learner:
    """Scores batches and updates the policy, with or without adapters (policy.lora) and a value model (PPO).

    The starting policy is the reference of the KL. With adapters it is the frozen part of the policy. Without, it is a
    copy, made only where the algorithm reads it.
    """

    def __init__(self, config: Config, policy_config, mesh, *, loss: Callable | None = None,
                 advantage: Callable | None = None, scorers: dict[str, Callable] | None = None):
        """config: algorithm, train, optimizer, value and policy.lora are read. policy_config: DecoderConfig.
        loss, advantage: functions in place of `algorithm.loss` and `algorithm.advantage`, of the same contracts.
        scorers: name -> (batch: TokenBatch) -> float32[B, T], beside those of `algorithm.scorers`.

        Raises:
          InputError: a term of `algorithm.terms` needs a scorer that is not there."""
        self.config, self.policy_config, self.mesh, self._advantage = config, policy_config, mesh, advantage
        algorithm = config.algorithm
        self.optimizers = make_optimizers(config)
        self.assemble = lora.assembler(config.policy.lora)
        self.passes = Passes(config, mesh, make_programs(
            config, policy_config, loss=loss or load_loss(algorithm.loss), optimizer=self.optimizers[0],
            value_optimizer=self.optimizers[1], assemble=self.assemble))
        made = {name: load_object(function, "scorer") for name, function in algorithm.scorers.items()}
        self.scorers = {name: make(config, mesh) for name, make in made.items()} | (scorers or {})
        for term in algorithm.terms:
            for need in set(OBJECTIVE_TERMS.entry(term).needs) - {"reference", *self.scorers}:
                raise InputError(f"algorithm.terms: {term!r} needs the log-probs of {need!r}; name it in algorithm.scorers")
        self.frozen = self.reference = None

    def start(self, params) -> TrainState:
        """The state before the first step, without the parts of `zsjax.rl.steering`. params are donated."""
        state, self.frozen = start_state(self.config, self.policy_config, params, self.optimizers, self.mesh)
        if needs_reference(self.config.algorithm):
            self.reference = jax.tree.map(jnp.copy, state.params) if self.frozen is None else self.frozen
        return state

    def policy(self, state: TrainState) -> dict:
        """The decoder's parameters for forward passes: with adapters beside the kernels, not copied."""
        return self.assemble(state.params, self.frozen)

    def export(self, state: TrainState) -> dict:
        """The decoder's parameters as they are saved: adapters are merged into the kernels."""
        if self.frozen is None:
            return state.params
        return lora.merge(self.frozen, state.params, self.config.policy.lora)

    def score(self, state: TrainState, policy, batch: TokenBatch) -> TokenBatch:
        """The batch with old_logprobs, `extra` of the scorers and, where the algorithm reads them, ref_logprobs and
        values: float32[B, T], 0 in rows that are not `scored`."""
        rows = batch.replace(row_valid=self.scored(batch))
        batch = batch.replace(old_logprobs=self.passes.logprobs(policy, rows))
        if self.reference is not None:
            batch = batch.replace(ref_logprobs=self.passes.logprobs(self.reference, rows))
        if self.config.algorithm.value_model:
            batch = batch.replace(values=self.passes.values(state.value_params, rows))
        return batch.replace(extra={name: np.asarray(scorer(batch), np.float32) for name, scorer in self.scorers.items()})

    def scored(self, batch: TokenBatch) -> np.ndarray:
        """bool[B]: the rows that `score` scores. Packed passes leave out rows that the loss leaves out, unless the KL is in
        the rewards: there it counts in the baseline of the row's group."""
        every = not self.passes.packed or self.config.algorithm.kl_in == "reward"
        return np.ones_like(batch.row_valid) if every else batch.row_valid

    def assign_credit(self, batch: TokenBatch, kl_coef) -> TokenBatch:
        """The batch with advantages and returns, and with the KL in the rewards if algorithm.kl_in is "reward"."""
        algorithm, mask = self.config.algorithm, roles.loss_mask(batch.roles)
        if algorithm.kl_in == "reward" and batch.ref_logprobs is not None:  # no reference: the KL weighs 0
            # Rows that the loss leaves out keep their KL: they count in their group's baseline.
            batch = batch.replace(rewards=np.asarray(credit.kl_rewards(
                batch, loss_mask=mask, coef=kl_coef, kind=algorithm.kl_kind)))
        advantages, returns = jax.device_get(credit.estimate(
            algorithm, batch, loss_mask=mask & batch.row_valid[:, None], own=self._advantage))
        return batch.replace(advantages=advantages, returns=returns)

    def update(self, state: TrainState, batch: TokenBatch, settings) -> tuple[TrainState, dict[str, float]]:
        """All updates of a step, in minibatches, `train.epochs` times over the batch.

        Returns:
          (state, info): the state with new parameters and optimizer states, and the same step counter. info:
          means over the updates, "value/..." of the value model's; `nonfinite` is above 0 where an update was left out.

        Raises:
          InputError: the weight of a loss depends on the logprobs, and there are other terms beside it.
        """
        algorithm, options = self.config.algorithm, self.config.train
        adaptive = algorithm.kl_target and algorithm.kl_in == "loss"
        coef = jnp.float32(settings.kl_coef) if adaptive else None
        learns_policy = not (algorithm.value_model and settings.step < self.config.value.warmup_steps)
        params, opt_state, infos = state.params, state.opt_state, []
        value_params, value_opt_state, value_infos = state.value_params, state.value_opt_state, []
        for minibatch in minibatches(batch, options.minibatches, options.epochs, settings.key):
            if algorithm.value_model:
                value_params, value_opt_state, info = self.passes.update_value(value_params, value_opt_state, minibatch)
                value_infos.append(info)
            if learns_policy:
                params, opt_state, info = self.passes.update(params, opt_state, minibatch, coef, self.frozen)
                infos.append(info)
        infos, value_infos = jax.device_get((infos, value_infos))
        if any(info.pop("weight_mismatch", 0) for info in infos):
            raise InputError(f"algorithm.loss: the weight of {algorithm.loss!r} depends on the logprobs, so other terms "
                             "cannot be weighed against it; make it depend on masks alone, or set kl_coef, entropy_coef and "
                             "terms to 0")
        state = state.replace(params=params, opt_state=opt_state, value_params=value_params, value_opt_state=value_opt_state)
        return state, means(infos) | means(value_infos, prefix="value/")


OF_EVERY_UPDATE = ("loss", "grad_norm", "weight", "nonfinite")  # entries of an info that hold without a counted token


def start_state(config: Config, policy_config, params, optimizers, mesh) -> tuple[TrainState, dict | None]:
    """(the learner's part of the state before the first step, the frozen policy where policy.lora is on, else None)."""
    everywhere = replicated(mesh)

    def place(tree, specs=None):
        return reshard(tree, param_shardings(policy_config, mesh, TRAIN_RULES, specs))

    # Counters are on the mesh like the rest, or the second update would compile again.
    def on_mesh(tree):
        return jax.tree.map(lambda x: x if x.ndim else reshard(x, everywhere), tree)

    root, adapters = jax.random.key(config.seed), config.policy.lora
    policy = trained = place(params)
    if adapters.rank:
        trained = place(lora.init_adapters(policy_config, adapters, jax.random.fold_in(root, 2**30)),
                        lora.adapter_specs(policy_config, adapters))
    step, key = reshard((np.int32(0), jax.random.key_data(root)), everywhere)
    state = TrainState(step=step, params=trained, opt_state=on_mesh(optimizers[0].init(trained)), key=key)
    if config.algorithm.value_model:  # all of it is trained, whatever is of the policy
        value_params = init_value(policy_config, policy, jax.random.fold_in(root, 2**31))
        value_params["value_head"] = reshard(value_params["value_head"], everywhere)
        state = state.replace(value_params=value_params, value_opt_state=on_mesh(optimizers[1].init(value_params)))
    return state, policy if adapters.rank else None


def means(infos: list[dict], prefix: str = "") -> dict[str, float]:
    """The mean of each number over a step's updates. What is measured on tokens is of the updates that counted a token, and
    left out where none did."""
    counted = [info for info in infos if info["weight"] > 0]
    of = {name: infos if name in OF_EVERY_UPDATE else counted for name in (infos[0] if infos else ())}
    return {prefix + name: float(np.mean([info[name] for info in some])) for name, some in of.items() if some}
