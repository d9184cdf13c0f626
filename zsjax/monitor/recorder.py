"""The output of a training run: timers, metrics, trajectories, checkpoints, alarms."""

import contextlib
import logging
import pathlib

from zsjax.config.fields import Config
from zsjax.errors import BudgetSpent, NonFiniteUpdate
from zsjax.monitor import health
from zsjax.monitor.episodes import save_trajectories
from zsjax.monitor.phases import Timer
from zsjax.monitor.usage import CompileCount
from zsjax.monitor.writer import Writer, read_lines
from zsjax.parallel import hosts, stops
from zsjax.parallel.checkpoint import Checkpointer
from zsjax.types import TrainState


class Recorder:
    """Times the parts of a step, writes its line, saves checkpoints, and stops a run that collapses.

    A context: leaving it waits for the checkpoint that is being written.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, writer: Writer, tokenizer, *, config_json: str = "{}"):
        """workdir: folder of checkpoints/train and trajectories/. config_json: kept with the checkpoints."""
        self.config, self.workdir, self.writer, self.tokenizer = config, workdir, writer, tokenizer
        self.time, self._compiles = Timer(), CompileCount()
        self._checkpoints = Checkpointer(workdir / "checkpoints" / "train", keep=config.train.keep_checkpoints,
                                         config_json=config_json, before=writer.flush)
        self._history: list[dict] = []
        self._spent: BudgetSpent | None = None  # what an evaluation raised
        self._evaluation_owed = False
        self._open, self._dropped = contextlib.ExitStack(), False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._open.callback(self._checkpoints.close)  # first, so that a signal waits until the last one is written
        self._open.__exit__(*exception)

    def restore(self, state: TrainState) -> TrainState:
        """The state of the run's last checkpoint; the given one is deleted. Without a checkpoint, the given one. Removes
        metrics of steps that run again."""
        if (restored := self._checkpoints.restore(state, donate=True)) is not None:
            _, state, extra = restored
            self._evaluation_owed = extra.get("evaluate", False)
            logging.info("train: resumed at step %d", int(state.step))
        elif hosts.is_lead():
            for path in (self.workdir / "trajectories").glob("train_*.jsonl"):  # of a start that left no state
                path.unlink()
        first = int(state.step)
        self.writer.truncate("train", first)
        self._history = [line for line in read_lines(self.workdir / "metrics.jsonl")
                         if line["stage"] == "train" and line["step"] <= first]  # another host may not have truncated yet
        self._open.enter_context(self.writer.progress("train", total=self.config.train.steps, done=first))
        self._open.enter_context(stops.deferred())
        return state

    def owed_evaluation(self, step: int) -> dict | None:
        """The metrics of the restored step where the budget was spent in its evaluation, which is thus still to be made;
        else None."""
        if not self._evaluation_owed:
            return None
        line = next((line for line in self._history if line["step"] == step), {})
        return {name: value for name, value in line.items() if name not in ("stage", "step")}

    def write_owed_evaluation(self, step: int, metrics: dict):
        """Writes the line of a restored step anew, with its evaluation.

        Raises:
          health.HealthAlarm, BudgetSpent: as `step`; the state was saved before.
        """
        if self._spent is None:
            self.writer.truncate("train", step - 1)
            ringing, alarm = self._alarms([line for line in self._history if line["step"] < step], metrics)
            self.writer.write(step, metrics | ringing | self.time.take(), "train")
            self._evaluation_owed = False
        self._end(step, None if self._spent else alarm)

    @contextlib.contextmanager
    def saving_if_stopped(self, step: int, state: TrainState):
        """Saves the state before the step if a signal came, or if web search's budget is spent in it; the error says where
        the state is."""
        try:
            if stops.requested():
                raise stops.stopped()
            with stops.stopping_at_once():
                yield
        except (BudgetSpent, stops.Stopped) as error:
            self._checkpoints.save(step, state, {"data_position": step})
            if isinstance(error, BudgetSpent):
                raise BudgetSpent(f"{error}; {self._checkpoints.whereabouts()}") from error
            raise stops.stopped(self._checkpoints.whereabouts()) from error

    def timed_evaluation(self, function, policy) -> dict[str, float]:
        """The scores of an evaluation, timed. If it spends the budget, `step` writes the step and then ends the run."""
        with self.time("evaluate"):
            try:
                return function(policy)
            except BudgetSpent as error:
                self._spent = error
                return {}

    def trajectories(self, step: int, state: TrainState, experience, info: dict):
        """Saves a step's episodes if they are due, one a question; before an error, saves all.

        Raises:
          NonFiniteUpdate: info has a `nonfinite` above 0. The state is saved if no update of the step was applied.
        """
        options = self.config.train
        nonfinite = [info[name] for name in ("nonfinite", "value/nonfinite") if name in info]  # shares of the updates
        due = step % options.trajectories_every == 0 or step + 1 == options.steps
        path = self.workdir / "trajectories" / f"train_{step + 1:06d}.jsonl"
        if hosts.is_lead() and (any(nonfinite) or due):
            save_trajectories(path, experience.episodes, experience.questions, self.tokenizer, experience.scores,
                              every=any(nonfinite))
            self._drop_trajectories()
        if any(nonfinite):
            if min(nonfinite) == 1:
                self._checkpoints.save(step, state, {"data_position": step})
            raise NonFiniteUpdate(f"step {step + 1}: the loss or its gradient is not finite. The step's trajectories "
                                  f"are in {path}; {self._checkpoints.whereabouts()}")

    def _drop_trajectories(self):
        kept, files = self.config.train.trajectories_kept, sorted((self.workdir / "trajectories").glob("train_*.jsonl"))
        if len(files) > kept and not self._dropped:
            self._dropped = True
            self.writer.note(f"trajectories: from here on the first file and the {kept - 1} newest are kept; "
                             "train.trajectories_kept has the number")
        for path in files[1:1 - kept]:  # all but the first and the kept - 1 newest
            path.unlink()

    def step(self, step: int, state: TrainState, experience, metrics: dict):
        """Writes a step's line and, if one is due, a checkpoint.

        Raises:
          health.HealthAlarm: a metric stayed out of its bounds and config.health.stop is set; the state is saved.
          BudgetSpent: an evaluation spent the budget; the state is saved.
        """
        options = self.config.train
        ringing, alarm = self._alarms(self._history, metrics)
        taken = self.time.take()
        passes = sum(taken[f"time/{part}"] for part in ("rollout", "score", "update"))
        self.writer.write(step + 1, metrics | ringing | taken | self._compiles.take() | {
            "time/step": sum(value for name, value in taken.items() if name.startswith("time/")),
            "speed/tokens_per_second": int(experience.episodes.length.sum()) / passes}, "train")
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.steps or alarm or self._spent:
            with self.time("checkpoint"):  # the line is written already: these seconds count in the next one
                owed = {"evaluate": True} if self._spent else {}
                self._checkpoints.save(step + 1, state, {"data_position": step + 1} | owed)
        self._end(step + 1, alarm)

    def _alarms(self, before, metrics):
        """(the alarms after a step's metrics, the sentence that stops the run or None)."""
        rules = self.config.health
        self._history = [*before, metrics][-rules.patience:]
        ringing = health.alarms(self._history, rules.alarms, rules.patience)
        return ringing, health.stop_message(ringing, metrics, rules.alarms, rules.patience) if rules.stop else None

    def _end(self, step, alarm):
        """Ends the run after a step in whose evaluation the budget was spent, or for an alarm."""
        if self._spent:
            raise BudgetSpent(f"{self._spent}; {self._checkpoints.whereabouts()}") from self._spent
        if alarm:
            raise health.HealthAlarm(f"stopped after step {step}, {alarm}; {self._checkpoints.whereabouts()}. Widen "
                                     "config.health.alarms or set health.stop to false to go on from there")
