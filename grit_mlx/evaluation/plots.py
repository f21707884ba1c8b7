"""Charts as PNG files (extra ``plots``): scores as bars, runs of training as curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grit_mlx.evaluation.scoring import Score
from grit_mlx.files.atomic import atomic_path
from grit_mlx.optional import optional

__all__ = ["check_plots", "plot_curves", "plot_scores"]

# Inches.
_HEIGHT, _GROUP, _BAR = 4.2, 0.5, 0.28

# The first eight colours of matplotlib's colour-blind style, in an order in which neighbours differ in lightness.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


def check_plots() -> None:
    """Import matplotlib, and let it draw without a display; called early, it refuses early.

    Raises:
        DependencyError: it is not installed.
    """
    optional("matplotlib", extra="plots", purpose="A chart").use("Agg")


@contextmanager
def _chart(path: Path, *, dpi: int, **options: Any) -> Iterator[tuple[Any, Sequence[Any]]]:
    """Lend matplotlib's figure and a row of axes, made with options of ``subplots``; write them when the block ends."""
    check_plots()
    pyplot = optional("matplotlib.pyplot", extra="plots", purpose="A chart")
    figure, axes = pyplot.subplots(squeeze=False, **options)
    try:
        yield figure, axes[0]
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=dpi, format="png")
    finally:
        pyplot.close(figure)


def plot_scores(path: Path, scores: Sequence[Score]) -> None:
    """Draw the main scores: a group of bars for each set, a bar in it for each system.

    Perplexities have no upper end, so they get a panel of their own.

    Args:
        path: the PNG to write.
        scores: from ``evaluate``; at least one.

    Raises:
        DependencyError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    panels = [[score for score in scores if (score.kind == "answers") is answers] for answers in (False, True)]
    panels = [panel for panel in panels if panel]
    widths = [_panel_width(panel) for panel in panels]
    size = (max(5.0, sum(widths) + 0.8), _HEIGHT)
    with _chart(path, dpi=150, ncols=len(panels), figsize=size, width_ratios=widths) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=True):
            _draw_bars(axis, panel, list(dict.fromkeys(score.system for score in scores)))
        handles: dict[str, Any] = {}
        for axis in axes:
            handles.update(dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)))
        figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=4, frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.07 * -(-len(handles) // 4)))


def _panel_width(scores: Sequence[Score]) -> float:
    systems, sets = ({getattr(score, name) for score in scores} for name in ("system", "set"))
    return len(sets) * (_GROUP + _BAR * len(systems))


def _draw_bars(axis: Any, scores: Sequence[Score], systems: Sequence[str]) -> None:
    here = [name for name in systems if any(score.system == name for score in scores)]
    sets = list(dict.fromkeys(score.set for score in scores))
    labels = {score.set: f"{score.set}\n{score.main}" for score in scores}
    width = 0.85 / len(here)
    systems_of = {one: [name for name in here if any((s.set, s.system) == (one, name) for s in scores)] for one in sets}
    for name in here:
        own = {score.set: score.values[score.main] for score in scores if score.system == name}
        # A group is as wide as the systems that were scored on its set.
        places = [
            sets.index(one) + (systems_of[one].index(name) - (len(systems_of[one]) - 1) / 2) * width for one in own
        ]
        color = _COLORS[systems.index(name) % len(_COLORS)]
        bars = axis.bar(places, list(own.values()), width * 0.94, label=name, color=color, zorder=2)
        axis.bar_label(bars, fmt=_label, fontsize=7, padding=1, rotation=90 if len(here) > 3 else 0)
    axis.set_xticks(range(len(sets)), [labels[one] for one in sets], fontsize=8)
    axis.grid(axis="y", alpha=0.3, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    if scores[0].kind == "answers":
        axis.margins(y=0.15)
    else:
        lowest = min(score.values[score.main] for score in scores)
        axis.set_ylim(min(0.0, 1.1 * lowest), 1.12)
        axis.set_yticks([tick / 5 for tick in range(6)])


def _label(value: float) -> str:
    """``.93``-like: a chart has no room for zeros."""
    return f"{value:.2f}".replace("0.", ".") if abs(value) < 1 else f"{value:.3g}"


def plot_curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw the losses and scores of one or more runs, side by side.

    Args:
        path: the PNG to write.
        runs: the records of each run's log, by the name it is shown with.

    Raises:
        As ``plot_scores``.
    """
    records = [record for log in runs.values() for record in log]
    losses = sorted({name for record in records for name in record["losses"]} - {"total"})
    scores = sorted({name for record in records for name in record.get("scores", {})})
    panels = [*losses, *(["score"] if scores else [])]
    with _chart(path, dpi=120, ncols=len(panels), figsize=(4.5 * len(panels), 3.5)) as (figure, axes):
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
        _draw_points(axis, points, label, color, "-o")
        return
    for kind, style in (("train", "-"), ("validation", "--o")):
        points = [(r["step"], r["losses"][panel]) for r in log if r["kind"] == kind and panel in r["losses"]]
        _draw_points(axis, points, f"{label} {kind}".strip(), color, style)


def _draw_points(axis: Any, points: Sequence[tuple[int, float]], label: str, color: str, style: str) -> None:
    if points:
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, style, color=color, label=label, markersize=3, linewidth=1)
