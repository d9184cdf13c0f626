"""Several hosts that run one program: which host writes files, what all agree on, and what they gather.

Every host runs the same Python on the same questions. Device work is on a mesh over all devices, or over the host's own.
Results are whole on every host (`fetch`, `gather_rows`), so that all hosts compute the same metrics and take the same
decisions. Only the lead host writes files (`is_lead`). What depends on files or on the world is the lead's, and is
broadcast (`agree`, `from_lead`). An error of one host in work that only it does must reach all (`together`), or the others
wait for it for ever. With one host the functions here do nothing.
"""

import collections
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from zsjax.errors import BudgetSpent, UserError


def initialize(where: str = ""):
    """Joins the other hosts. Call it before anything uses a device.

    Args:
      where: "" finds the cluster on SLURM, Cloud TPU, Kubernetes and Open MPI. Else "ADDRESS:PORT,COUNT,INDEX": the first
        host's address, the number of hosts, and this host's index.

    Raises:
      UserError: `where` has another form, or no cluster was found.
    """
    if not where:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise UserError(f"no cluster was found ({str(error).splitlines()[0]}): give "
                            "--hosts=ADDRESS:PORT,COUNT,INDEX") from error
        return
    address, *counts = where.split(",")
    if ":" not in address or len(counts) != 2 or not all(count.strip().isdigit() for count in counts):
        raise UserError(f"--hosts={where}: give ADDRESS:PORT,COUNT,INDEX, such as 10.0.0.1:8476,4,0")
    jax.distributed.initialize(address, int(counts[0]), int(counts[1]))


def is_lead() -> bool:
    """Whether this host writes the run's files and prints."""
    return jax.process_index() == 0


def agree(value: bool) -> bool:
    """The lead's value, on every host. All hosts must call it."""
    return share(bool(value))[0]


def share(value) -> list:
    """Every host's value, in the order of the hosts. All hosts must call it. value: of JSON; a tuple becomes a list."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    size = max(64, 1 << (longest - 1).bit_length())  # few sizes, few programs
    texts = multihost_utils.process_allgather(np.pad(text, (0, size - len(text)), constant_values=ord(" ")))
    return [json.loads(row.tobytes()) for row in texts]


def together(call: Callable[[], Any]):
    """call(), each host its own; where a host fails, all hosts raise its error. All hosts must call it.

    Of several hosts that fail, the first one's error counts. Elsewhere it is a `BudgetSpent`, a `UserError` with its exit
    code, or a RuntimeError.
    """
    if jax.process_count() == 1:
        return call()
    value = error = None
    try:
        value = call()
    except Exception as raised:
        error = raised
    failed = [[host, *of_host] for host, of_host in enumerate(share(_described(error))) if of_host]
    if not failed:
        return value
    if failed[0][0] == jax.process_index():
        raise error
    raise _error_of(*failed[0]) from error


def _described(error) -> list | None:
    """[kind, text, exit code] of an error, for `_error_of`."""
    if error is None:
        return None
    kind = next((kind.__name__ for kind in (BudgetSpent, UserError) if isinstance(error, kind)), None)
    text = str(error) if kind else f"{type(error).__name__}: {error}"
    return [kind, text, getattr(error, "exit_code", None)]


def _error_of(host: int, kind: str | None, text: str, exit_code: int | None) -> Exception:
    if kind is None:
        return RuntimeError(f"host {host} failed: {text}")
    error = {"BudgetSpent": BudgetSpent, "UserError": UserError}[kind](text)
    if exit_code is not None:
        error.exit_code = exit_code
    return error


def from_lead(make: Callable[[], Any]):
    """make() of the lead, which alone calls it, on every host: a value of JSON. Errors as of `together`."""
    if jax.process_count() == 1:
        return make()
    text = together(lambda: json.dumps(make()) if is_lead() else "")
    return json.loads(share(text)[0])


def wait(name: str):
    """Returns when every host has called it. What the lead wrote before is then there for all."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def fetch(tree):
    """Arrays as whole numpy arrays on every host. All hosts must call it."""
    def one(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)


def add_up(counts: Mapping[str, int]) -> dict[str, int]:
    """The sums over hosts, by name. All hosts must call it; their names may differ."""
    total = collections.Counter()
    for of_host in share(dict(counts)):
        total.update(of_host)  # unlike a sum, it keeps counts of 0
    return dict(total)


def gather_rows(tree, rows):
    """The whole batch on every host, from each host's rows.

    Args:
      tree: numpy arrays of R rows, the same number on every host.
      rows: int[R], the indices of these rows in the whole batch.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    tree, rows = multihost_utils.process_allgather((tree, np.asarray(rows)), tiled=True)
    return jax.tree.map(lambda x: np.asarray(x)[np.argsort(rows)], tree)
