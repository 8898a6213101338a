"""Bubble charts: accuracy against a cost, with an area by the number of parameters."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

LARGEST = 600  # area of the largest bubble, in points squared


@dataclass(frozen=True)
class Bubble:
    """A point of a bubble chart.

    Attributes:
        x (float): Where it stands from left to right.
        y (float): And from below.
        size (float): What its area says; the largest of a panel has :data:`LARGEST` points squared.
        group (str): All of a group have one colour, and a line in the legend.
        name (str): Written into the bubble. Defaults to '', nothing.
    """

    x: float
    y: float
    size: float
    group: str
    name: str = ''


def draw_bubbles(
    panels: dict[str, Sequence[Bubble]],
    path: str | os.PathLike,
    x: str | dict[str, str],
    y: str | dict[str, str],
    log: bool = False,
) -> None:
    """Draw bubble charts beside one another.

    Args:
        panels (dict[str, Sequence[Bubble]]): The bubbles of each panel by its title, which may be ''.
        path (str | os.PathLike): The picture to write.
        x (str | dict[str, str]): What the axis to the right says; a dict has one for each panel.
        y (str | dict[str, str]): And the one upwards.
        log (bool): Whether the axis to the right is logarithmic. Defaults to False.

    Raises:
        ValueError: There is nothing to draw.
    """
    from matplotlib.figure import Figure

    if not panels or not all(panels.values()):
        raise ValueError('no bubbles to draw: expected at least one in each panel')
    figure = Figure(figsize=(7 * len(panels), 4.5), layout='constrained')
    for axes, (title, bubbles) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        largest = max(bubble.size for bubble in bubbles)
        for group in dict.fromkeys(bubble.group for bubble in bubbles):
            chosen = [bubble for bubble in bubbles if bubble.group == group]
            places = [bubble.x for bubble in chosen], [bubble.y for bubble in chosen]
            axes.scatter(*places, [LARGEST * b.size / largest for b in chosen], alpha=0.5, label=group)
            for bubble in chosen:
                axes.annotate(bubble.name, (bubble.x, bubble.y), fontsize=7, ha='center', va='center')
        labels = [text[title] if isinstance(text, dict) else text for text in (x, y)]
        axes.set(title=title, xlabel=labels[0], ylabel=labels[1], xscale='log' if log else 'linear')
        axes.margins(0.15)
        axes.grid(alpha=0.3)
        for handle in axes.legend(fontsize=8, title='area: parameters', title_fontsize=8).legend_handles:
            handle.set_sizes([50])
    figure.savefig(path, dpi=120)
