"""Charts as PNG files (extra ``plots``), and the scores of systems as bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grit_mlx.evaluation.scoring import Score
from grit_mlx.files.atomic import atomic_path
from grit_mlx.optional import optional

__all__ = ["chart", "check_plots", "plot_scores"]

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
def chart(path: Path, *, dpi: int, **options: Any) -> Iterator[tuple[Any, Sequence[Any]]]:
    """Lend matplotlib's figure and a row of axes to draw on, and write them as a PNG when the block ends.

    Args:
        path: the file to write.
        dpi: dots per inch.
        **options: of ``pyplot.subplots``, such as ``ncols``.

    Raises:
        DependencyError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
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
        As ``chart``.
    """
    panels = [[score for score in scores if (score.kind == "answers") is answers] for answers in (False, True)]
    panels = [panel for panel in panels if panel]
    widths = [_panel_width(panel) for panel in panels]
    size = (max(5.0, sum(widths) + 0.8), _HEIGHT)
    with chart(path, dpi=150, ncols=len(panels), figsize=size, width_ratios=widths) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=True):
            _draw(axis, panel, list(dict.fromkeys(score.system for score in scores)))
        handles: dict[str, Any] = {}
        for axis in axes:
            handles.update(dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)))
        figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=4, frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.07 * -(-len(handles) // 4)))


def _panel_width(scores: Sequence[Score]) -> float:
    systems, sets = ({getattr(score, name) for score in scores} for name in ("system", "set"))
    return len(sets) * (_GROUP + _BAR * len(systems))


def _draw(axis: Any, scores: Sequence[Score], systems: Sequence[str]) -> None:
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
