"""Shared parts of graphs."""

from pathlib import Path
from typing import Final

from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

OURS: Final = "#2468b0"
OTHER: Final = "#7fb2e5"
PEER: Final = "#9a9a9a"
GOAL: Final = "#c2410c"

__all__ = ["GOAL", "OTHER", "OURS", "PEER", "Figure", "ratio_note", "save", "shades"]


def ratio_note(ratio: float, goal: float) -> str:
    """Return a ratio beside its goal."""
    return f"{ratio:.2f}× (goal {goal:g}×)"


def shades(count: int) -> list[tuple[float, float, float, float]]:
    """Return shades of the vault's colour, from light to full."""
    return [to_rgba(OURS, number / count) for number in range(1, count + 1)]


def new_figure(height: float = 4.5) -> Figure:
    return Figure(figsize=(9, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
