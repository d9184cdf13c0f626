"""Several hosts that run one program: which host writes files, what all agree on, and what they gather.

Every host runs the same Python on the same questions. Device work is on a mesh over all devices, or over the host's own.
Results are whole on every host (`fetch`, `gather_rows`), so that all hosts compute the same metrics and take the same
decisions. Only the lead host writes files (`is_lead`). Decisions that depend on files are the lead's, and are broadcast
(`agree`). With one host the functions here do nothing.
"""

import collections
import json
from collections.abc import Mapping

import jax
import numpy as np


def initialize(where: str = ""):
    """Joins the other hosts. Call it before anything uses a device.

    Args:
      where: "" finds the cluster on SLURM, Cloud TPU, Kubernetes and Open MPI. Else "ADDRESS:PORT,COUNT,INDEX": the first
        host's address, the number of hosts, and this host's index.

    Raises:
      UserError: `where` has another form, or no cluster was found.
    """
    from zsjax.errors import UserError

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
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


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
    if jax.process_count() == 1:
        return dict(counts)
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(dict(counts)).encode(), np.uint8)
    size = multihost_utils.process_allgather(np.int32(len(text))).max()
    texts = multihost_utils.process_allgather(np.pad(text, (0, size - len(text)), constant_values=ord(" ")))
    total = collections.Counter()
    for row in texts:
        total.update(json.loads(row.tobytes()))
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
