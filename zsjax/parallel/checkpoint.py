"""Checkpoints with orbax: all that a run needs to resume exactly, written in the background.

`save` returns when the state is copied to the host; orbax writes in a thread to a folder with a temporary name and renames
it when all is on disk. So a kill at any moment leaves the last complete checkpoint, and a folder with a plain number is
complete. On a CPU `save` returns when all is written: see there.

    checkpointer = Checkpointer(workdir / "checkpoints" / "train", keep=2, config_json=config.to_json(config))
    restored = checkpointer.restore(template=state)
    if restored is not None:
        step, state, extra = restored
    for step in range(step, steps):
        ...
        writer.write(step + 1, metrics)         # before the save: a kept step always has its line
        checkpointer.save(step + 1, state, {"data": position})
    checkpointer.close()

Each array has a fingerprint. orbax notices missing and cut files, but no flipped bit, and it casts silently to another
dtype of the template. Here, restoring is bit-exact or an error.
"""

import contextlib
import ctypes
import json
import logging
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.errors import UserError, reason_of
from zsjax.parallel.constrain import platform


class CheckpointError(UserError):
    """A checkpoint is damaged, does not fit the run, or cannot be written. The message names the folder."""


class Damaged(CheckpointError):
    """A checkpoint that is not what was saved."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class Checkpointer:
    """Numbered checkpoints of one stage in one folder."""

    def __init__(self, directory, *, keep: int = 2, config_json: str | None = None,
                 before: Callable[[], None] = lambda: None):
        """Opens or makes the folder. Another process that writes to it is not disturbed.

        Args:
          directory: where `<step>/` folders go.
          keep: how many of the latest are kept.
          config_json: the run's config, kept with every checkpoint (see `config`).
          before: called before each save: it flushes what must not be older than a checkpoint.
        """
        _quiet()
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._config_json, self._keep, self._before = config_json, keep, before
        self.directory = pathlib.Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise CheckpointError(f"cannot open the checkpoint folder {self.directory}: {error}") from error

    @property
    def latest_step(self) -> int | None:
        """Step of the last complete checkpoint."""
        return self._manager.latest_step()

    def whereabouts(self) -> str:
        """A clause for messages: which state is saved, once all writes are done."""
        self.wait()
        step = self.latest_step
        what = "no state was saved" if step is None else f"the state of step {step} is"
        return f"{what} in {self.directory}"

    def save(self, step: int, state: Any, extra: dict | None = None):
        """Copies `state` and writes it in the background; waits first if an earlier save is still being written.

        Where the CPU is the device this waits until all is written. There orbax reads the arrays in place, and an update
        that cannot donate them needs memory for a second state.

        Args:
          step: steps done; a step that is saved already is not saved again.
          state: a pytree of arrays and numbers. May be donated as soon as this returns.
          extra: further state as JSON: data position, stage, ...
        """
        if step in self._manager.all_steps():
            return
        self._before()
        ocp = self._ocp
        about = {"extra": extra or {}, "config": self._config_json, "leaves": fingerprints(state)}
        about = json.loads(json.dumps(about, default=int)) | {"check": _check_sum(about)}
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state),
                                                             about=ocp.args.JsonSave(about)))
        if platform() == "cpu":
            self.wait()
            _return_freed_memory()

    def restore(self, template: Any, step: int | None = None, *, donate: bool = False) -> tuple[int, Any, dict] | None:
        """Reads a checkpoint into the form of `template`.

        Args:
          template: a pytree like the saved one; leaves are arrays or jax.ShapeDtypeStruct, whose shardings decide where
            the restored arrays are put.
          step: which checkpoint; None is the last complete one. If that is damaged it is set aside as damaged-STEP, and
            an older one is read; the log says so.
          donate: the template's arrays are deleted where there is a checkpoint, before it is read: memory for one state is
            enough.

        Returns:
          (step, state, extra), or None where there is no checkpoint.

        Raises:
          CheckpointError: it is damaged and the only one, or its tree is not the template's.
        """
        self.wait()
        if donate and self.latest_step is not None:
            template = jax.tree.map(_donated, template)
        if step is not None:
            return self._read(step, template)
        while (step := self.latest_step) is not None:
            try:
                found = self._read(step, template)
                for surplus in sorted(self._manager.all_steps())[:-self._keep]:  # a kill while it was being deleted
                    self._manager.delete(surplus)
                return found
            except Damaged as error:
                older = [other for other in self._manager.all_steps() if other < step]
                if not older or jax.process_count() > 1:  # hosts may differ in what they read
                    raise
                aside = self.directory / f"damaged-{step}"
                logging.warning("%s: %s; it is kept as %s, and the run goes on from step %d", self.directory / str(step),
                                error.reason, aside.name, max(older))
                shutil.rmtree(aside, ignore_errors=True)
                with self._writing():
                    (self.directory / str(step)).rename(aside)
                self._manager.reload()
        return None

    def _read(self, step, template):
        ocp, about = self._ocp, self._about(step)
        self._check_template(step, about["leaves"], template)
        template = jax.tree.map(_placed, template)
        args = ocp.args.PyTreeRestore(item=template,
                                      restore_args=ocp.checkpoint_utils.construct_restore_args(template))
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        except Exception as error:  # tensorstore raises ValueError, OSError, KeyError or Exception where files are damaged
            raise self._damaged(step, reason_of(error)) from error
        wrong = [name for name, leaf in fingerprints(state).items() if leaf != about["leaves"][name]]
        if wrong:
            raise self._damaged(step, f"{wrong[0]} does not hold the numbers that were saved")
        _return_freed_memory()
        return step, state, about["extra"]

    def extra(self, step: int | None = None) -> dict | None:
        """The `extra` of a checkpoint without its arrays, None where there is no checkpoint."""
        self.wait()
        step = self.latest_step if step is None else step
        return None if step is None else self._about(step)["extra"]

    def config(self, step: int | None = None) -> str | None:
        """The config JSON that a checkpoint was written with, None where there is no checkpoint."""
        self.wait()
        step = self.latest_step if step is None else step
        return None if step is None else self._about(step)["config"]

    def wait(self):
        """Returns when all writes are done; raises their errors."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except Exception as error:  # of orbax's threads: OSError, tensorstore's ValueError, or a group of them
            reason = _refusal(error)
            if reason is None:
                raise
            raise CheckpointError(f"cannot write a checkpoint to {self.directory} ({reason}); make room or give write "
                                  "permission, and start the same command again") from error

    def close(self):
        """Waits and lets go of the threads."""
        self.wait()
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _about(self, step):
        # Read as plain JSON: neither arrays nor orbax are needed for it.
        folder = self.directory / str(step)
        if not folder.is_dir():
            raise CheckpointError(f"there is no checkpoint {folder}")
        try:
            about = json.loads((folder / "about" / "metadata").read_text())
            about, kept = {name: about[name] for name in ("extra", "config", "leaves")}, about.get("check")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(step, f"about/metadata: {error}") from error
        if kept not in (None, _check_sum(about)):  # None: of version 0.2
            raise self._damaged(step, "about/metadata does not hold what was saved")
        return about

    def _damaged(self, step, reason):
        older = [s for s in self._manager.all_steps() if s < step]
        fix = f"remove this folder to go on from step {max(older)}" if older else "remove this folder to start anew"
        return Damaged(f"the checkpoint {self.directory / str(step)} is damaged ({reason}); {fix}", reason)

    def _check_template(self, step, saved, template):
        want = {name: _describe(leaf) for name, leaf in _named_leaves(template)}
        have = {name: leaf["is"] for name, leaf in saved.items()}
        problems = [f"{name}: saved {have.get(name, 'not')}, needed {want.get(name, 'not')}"
                    for name in sorted(want.keys() | have.keys()) if have.get(name) != want.get(name)]
        if problems:
            more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointError(f"the checkpoint {self.directory / str(step)} does not fit this run:\n  "
                                  + "\n  ".join(problems[:5]) + more)


def _refusal(error: BaseException | None) -> str | None:
    """Why the operating system refused a write; None for another error."""
    if error is None:
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    said = re.search(r"([^:]+) \[os_error_code", str(error))
    if said:
        return said[1].strip()
    inside = [*getattr(error, "exceptions", ()), error.__cause__]
    return next(filter(None, map(_refusal, inside)), None)


def fingerprints(tree) -> dict[str, dict]:
    """{leaf name: {"is": "float32[2,3]", "sum": int}}: what each leaf is, and 32 bits that change with its content.

    Device arrays are summed on their devices, as integers: the sum of their words times odd weights, modulo 2^32. Integer
    sums do not depend on the order, so the fingerprint is the same on any mesh, and any single changed word changes it.
    """
    named = _named_leaves(tree)
    on_device = {name: leaf for name, leaf in named if isinstance(leaf, jax.Array)}
    sums = jax.device_get(_word_sums(on_device)) if on_device else {}
    return {name: {"is": _describe(leaf), "sum": int(sums[name]) if name in sums else _host_sum(leaf)}
            for name, leaf in named}


def _check_sum(about):
    return zlib.crc32(json.dumps(about, sort_keys=True, default=int).encode())


def _host_sum(leaf):
    """What `_word_sums` gives, in numpy, so that an array's device does not matter; of other leaves, their text."""
    if not isinstance(leaf, np.ndarray | np.generic):
        return zlib.crc32(repr(leaf).encode())
    words = np.ascontiguousarray(leaf).reshape(-1).view(f"uint{min(8 * leaf.dtype.itemsize, 32)}").astype(np.uint32)
    weights = 2 * np.arange(words.size, dtype=np.uint32) + 1
    return (words * weights).sum(dtype=np.uint32)


def _donated(leaf):
    """The shape, dtype and sharding of a template's array, which is deleted; other leaves as they are."""
    if not isinstance(leaf, jax.Array):
        return leaf
    kept = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    leaf.delete()
    return kept


def _return_freed_memory():
    """Gives freed memory back to the system where malloc can (glibc). After a state was written, malloc keeps about its
    size in pieces (measured with 672 MB in matrices of 0.5 to 102 MB)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _placed(leaf):
    """A template's leaf with a sharding: orbax gives back numpy where there is none."""
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    return leaf


@jax.jit
def _word_sums(arrays):
    def word_sum(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if x.dtype == jnp.bool_:
            x = x.astype(jnp.uint8)
        bits = min(8 * x.dtype.itemsize, 32)
        words = jax.lax.bitcast_convert_type(x, f"uint{bits}").astype(jnp.uint32)
        if words.size == 0:
            return jnp.uint32(0)
        # A word's weight is 2 i + 1 for its flat index i, made from iotas so that a sharded array stays where it is.
        index = jnp.zeros((), jnp.uint32)
        for axis, size in enumerate(words.shape):
            index = index * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        return (words * (2 * index + 1)).sum(dtype=jnp.uint32)

    return {name: word_sum(x) for name, x in arrays.items()}


def _named_leaves(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _describe(leaf):
    if isinstance(leaf, bool | int | float | str):
        return type(leaf).__name__
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _quiet():
    # orbax tells of every folder it looks at, and leaves asyncio to tell of errors that were raised already.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
