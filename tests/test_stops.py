"""SIGTERM and SIGINT: at once, at the next step of a loop, or during its longest part."""

import os
import signal
import sys
import time

import pytest

from zsjax.parallel import stops


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_outside_of_loops_a_signal_stops_at_once():
    before = [signal.getsignal(number) for number in stops.SIGNALS]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with pytest.raises(stops.Stopped, match=f"stopped by {number.name}") as error, stops.handled():
            send(number)
            raise AssertionError("too late")
        assert error.value.exit_code == code
    assert [signal.getsignal(number) for number in stops.SIGNALS] == before


def test_a_loop_is_asked(tmp_path):
    done = []
    with pytest.raises(stops.Stopped, match="SIGTERM; the state is saved; the same command goes on"), stops.handled():
        with stops.deferred():
            for step in range(9):
                if stops.requested():
                    raise stops.stopped("the state is saved")
                if step == 3:
                    send()
                    send()  # schedulers send it more than once
                done.append(step)
    assert done == [0, 1, 2, 3]


def test_its_longest_part_stops_at_once():
    with stops.handled(), stops.deferred(), stops.stopping_at_once():
        pass
    for early in (True, False):
        with pytest.raises(stops.Stopped), stops.handled(), stops.deferred():
            if early:
                send()
            with stops.stopping_at_once():
                assert not early
                send()
                raise AssertionError("too late")


def test_a_signal_in_the_last_step_counts():
    with pytest.raises(stops.Stopped), stops.handled(), stops.deferred():
        send()


class Swallows:
    """An object whose `__del__` gets a signal: Python drops what the handler raises there."""

    def __del__(self):
        send(signal.SIGINT)
        sum(range(1000))


def test_a_signal_in_a_callback_of_pythons_is_not_lost(capfd):
    hook = sys.unraisablehook
    with pytest.raises(stops.Stopped, match="SIGINT"), stops.handled():
        Swallows()
        time.sleep(20)
        raise AssertionError("lost")
    with pytest.raises(stops.Stopped), stops.handled():
        Swallows()
        with stops.deferred():  # the signal comes again inside of a loop, which saves its state
            until = time.monotonic() + 20
            while not stops.requested() and time.monotonic() < until:
                time.sleep(0.01)
            assert stops.requested()
    assert "Traceback" not in capfd.readouterr().err and sys.unraisablehook is hook


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(stops.Stopped), stops.handled(), stops.deferred():
        send(signal.SIGINT)
        assert stops.requested()
        send(signal.SIGINT)
        raise AssertionError("too late")
