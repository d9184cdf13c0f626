"""TensorBoard events: a second copy of the metrics."""

import contextlib
import logging
import pathlib
import re
import sys
import time


class TensorBoardEvents:
    """TensorBoard events of one phase. On a resume, TensorBoard drops the steps that are written again.

    Without tensorboardX's thread, which ends at a full disk and then holds up the run for ever. A phase whose events cannot
    be written goes on without them.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None):
        """folder: of the phase. purge_step: None, or the first step that is written again."""
        writer, self._proto, self._scalar = _tensorboard()
        self._writer, self._flushed = None, time.monotonic()
        with self._or_without():
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = writer(str(folder / "events"))
        if purge_step is not None:
            self._write(step=purge_step, file_version="brain.Event:2")
            self._write(step=purge_step, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))

    def add_scalars_of(self, line: dict):
        """Adds the numbers of a line of metrics.jsonl."""
        scalars = self._proto.Event().summary
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                # Names there have no ":", which those of a user's own functions have.
                scalars.MergeFrom(self._scalar(re.sub(r"[^-/\w.]", "_", name), value))
        self._write(step=line["step"], summary=scalars)

    def close(self):
        """Flushes and closes the file."""
        if self._writer is not None:
            with self._or_without():
                self._writer.close()

    def _write(self, **fields):
        if self._writer is None:
            return
        with self._or_without():
            self._writer.write_event(self._proto.Event(wall_time=time.time(), **fields))
            if time.monotonic() - self._flushed > 10:
                self._flushed = time.monotonic()
                self._writer.flush()

    @contextlib.contextmanager
    def _or_without(self):
        try:
            yield
        except OSError as error:
            logging.warning("TensorBoard events cannot be written (%s) and are left out from now on", error)
            self._writer = None


def _tensorboard():
    """(class that writes a file of events, protocol buffers, name and value -> Summary)."""
    # tensorboardX imports torch if it can, which takes seconds and is not needed for numbers: hide it.
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar
    finally:
        if hide:
            del sys.modules["torch"]
    return EventsWriter, event_pb2, scalar
