"""One side of ``benchmarks/peers.py``: does what it is told, a line of JSON at a time, and says how long it took.

Standard library only, since each side has an environment of its own. CPU seconds are those of all threads of the
process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


class Stopwatch:
    """Seconds and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self._began[0],
            "cpu_seconds": time.process_time() - self._began[1],
        }


def serve(side: Any) -> None:
    """Call the side's methods by name until stdin ends.

    A line is ``{"call": name, ...}``; the rest are its arguments. The answer is what the method returns, a mapping,
    with the time that it took under ``"all"``; or ``{"error": ...}``.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        watch = Stopwatch()
        try:
            answer = {**(getattr(side, request.pop("call"))(**request) or {}), "all": watch.read()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
