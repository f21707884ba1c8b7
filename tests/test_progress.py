from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from grit_mlx.progress import bar, reporting


def test_who_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    seen: list[float] = []
    with reporting(lambda done, _: seen.append(done), "x", 3) as report:
        assert report is not None
        report(2, None)
    assert seen == [2]
    cases = [(None, 10**6, False), (False, 10**6, False), (True, 1, True)]
    for stream, more in ((io.StringIO(), []), (Terminal(), [(None, 10**6, True), (None, 3, False)])):
        monkeypatch.setattr(sys, "stderr", stream)
        for progress, total, expected in more or cases:
            with reporting(progress, "x", total) as report:
                assert (report is not None) is expected


def test_a_bar_shows_how_far_it_is() -> None:
    out = io.StringIO()
    with bar("Reading", 8, console=Console(file=out, force_terminal=True, width=80)) as advance:
        advance(3, None)
        advance(4, 16)
    assert "Reading" in out.getvalue() and "4/16" in out.getvalue()
