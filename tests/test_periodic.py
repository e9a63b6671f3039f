"""`Periodic` continues after an error, and `stop` ends it."""

from __future__ import annotations

import threading
import time

from jobs.periodic import Periodic
from tests.serving import until


def test_an_error_does_not_end_it():
    calls, third = [], threading.Event()

    def work():
        calls.append(time.monotonic())
        if len(calls) == 3:
            third.set()
        raise ZeroDivisionError

    began = time.monotonic()
    periodic = Periodic("test", 0.05, work)
    periodic.start()
    assert third.wait(120)
    periodic.stop()
    done = len(calls)
    assert calls[0] - began >= 0.05  # the first call is after one interval
    time.sleep(0.2)
    assert len(calls) == done


def test_a_stop_waits_for_what_is_under_way_and_not_for_the_interval():
    entered, go_on, ended = threading.Event(), threading.Event(), []

    def work():
        entered.set()
        assert go_on.wait(120)
        ended.append(True)

    periodic = Periodic("test", 0.01, work)
    periodic.start()
    assert entered.wait(120)
    stopping = threading.Thread(target=periodic.stop)
    stopping.start()
    until(periodic._stopped.is_set)
    assert stopping.is_alive()
    go_on.set()
    stopping.join(120)
    assert len(ended) == 1
    idle = Periodic("test", 1000, work)
    idle.start()
    idle.stop()
    assert not idle._thread.is_alive()
    Periodic("test", 1, work).stop()  # stop without start
