"""Many hosts that run one program: who writes, what all must agree on, and what they gather.

Every host runs the same Python on the same questions and holds the same numbers: device work is on a mesh over all
devices or on the host's own, and what comes back to Python is whole on every host (`fetch`, `gather_rows`). So metrics
and decisions agree without being talked about; only files are one host's to write (`is_lead`), and what depends on files
is asked of that host (`agree`). With one host everything here does nothing.
"""

import collections
import json
from collections.abc import Mapping

import jax
import numpy as np


def initialize(where: str = ""):
    """Joins the other hosts; before anything touches a device.

    Args:
      where: "" finds them by itself on SLURM, Cloud TPU, Kubernetes and Open MPI; else "ADDRESS:PORT,COUNT,INDEX", the
        first host's address, how many there are, and which this is.

    Raises:
      UserError: `where` does not read as that, or nothing was found.
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
    """Whether this host writes the run's files and speaks on the screen."""
    return jax.process_index() == 0


def agree(value: bool) -> bool:
    """The lead's value, on every host; all must call."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def wait(name: str):
    """Returns when every host is here: what the lead has written before is there for all afterwards."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def fetch(tree):
    """Arrays as whole numpy arrays on every host; all must call, since hosts send each other what they lack."""
    def one(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)


def add_up(counts: Mapping[str, int]) -> dict[str, int]:
    """The sum of what every host counted, name by name; all must call, and may have counted different things."""
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
    """What each host has of a batch, as the whole batch on every host.

    Args:
      tree: numpy arrays of R rows, as many on every host.
      rows: int[R], which rows of the whole batch these are.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    tree, rows = multihost_utils.process_allgather((tree, np.asarray(rows)), tiled=True)
    return jax.tree.map(lambda x: np.asarray(x)[np.argsort(rows)], tree)
