"""The curves of a run as a PNG (extra ``plots``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_mlx.evaluation.plots import chart

__all__ = ["plot_curves"]


def plot_curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw the losses and scores of one or more runs, side by side.

    Args:
        path: the PNG to write.
        runs: the records of each run's log, by the name it is shown with.

    Raises:
        As ``chart``.
    """
    records = [record for log in runs.values() for record in log]
    losses = sorted({name for record in records for name in record["losses"]} - {"total"})
    scores = sorted({name for record in records for name in record.get("scores", {})})
    panels = [*losses, *(["score"] if scores else [])]
    with chart(path, dpi=120, ncols=len(panels), figsize=(4.5 * len(panels), 3.5)) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=True):
            for number, (label, log) in enumerate(runs.items()):
                _draw_run(axis, panel, log, label, f"C{number}")
            axis.set_title("mean score of the sets" if panel == "score" else f"{panel} loss")
            axis.set_xlabel("step")
            axis.grid(alpha=0.3)
            axis.legend(fontsize="small")
        figure.tight_layout()


def _draw_run(axis: Any, panel: str, log: Sequence[Mapping[str, Any]], label: str, color: str) -> None:
    if panel == "score":
        points = [(r["step"], sum(r["scores"].values()) / len(r["scores"])) for r in log if r.get("scores")]
        _draw(axis, points, label, color, "-o")
        return
    for kind, style in (("train", "-"), ("validation", "--o")):
        points = [(r["step"], r["losses"][panel]) for r in log if r["kind"] == kind and panel in r["losses"]]
        _draw(axis, points, f"{label} {kind}".strip(), color, style)


def _draw(axis: Any, points: Sequence[tuple[int, float]], label: str, color: str, style: str) -> None:
    if points:
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, style, color=color, label=label, markersize=3, linewidth=1)
