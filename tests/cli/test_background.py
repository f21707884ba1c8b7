"""Ctrl-C is answered at once by the main thread, while the work goes on to its next step."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from grit_mlx.cli.background import stoppable


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_result_and_errors() -> None:
    assert stoppable(lambda check: 7, on_stop=lambda: None) == 7
    with pytest.raises(ZeroDivisionError):
        stoppable(lambda check: 1 / 0, on_stop=lambda: None)


def test_ctrl_c_in_the_middle_of_a_step() -> None:
    happened: list[tuple[str, float]] = []
    start = time.monotonic()

    def work(check: Callable[[], None]) -> None:
        threading.Timer(0.1, press).start()
        time.sleep(1.5)  # one step, deaf to signals
        happened.append(("step", time.monotonic() - start))
        try:
            check()
        finally:
            happened.append(("saved", time.monotonic() - start))

    with pytest.raises(KeyboardInterrupt):
        stoppable(work, on_stop=lambda: happened.append(("answered", time.monotonic() - start)))
    assert [name for name, _ in happened] == ["answered", "step", "saved"]
    assert happened[0][1] < 1


def test_ctrl_c_counts_even_if_the_work_ends() -> None:
    def work(check: Callable[[], None]) -> int:
        press()
        time.sleep(0.6)
        return 7

    with pytest.raises(KeyboardInterrupt):
        stoppable(work, on_stop=lambda: None)
