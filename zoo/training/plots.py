"""Pictures of a run: losses over steps, and the load of experts over layers."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

INK, FAINT, ACCENT = "#23395d", "#9db4d3", "#d1495b"


def plot_losses(path: str | os.PathLike, records: Sequence[dict], title: str = "") -> None:
    """Writes a PNG of training and validation loss from the records of metrics.jsonl."""
    figure, axes = figure_of(7.5, 4.5)
    train = np.array([(r["step"], r["loss"]) for r in records if "loss" in r]).reshape(-1, 2)
    valid = np.array(
        [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]
    ).reshape(-1, 2)
    if len(train):
        width = max(1, len(train) // 40)
        name = "training"
        if width > 1:
            axes.plot(*train.T, color=FAINT, linewidth=0.8, alpha=0.7, label="training, each step")
            name = f"training, mean of {width} steps"
        axes.plot(*_running_mean(train, width).T, color=INK, linewidth=1.8, label=name)
    if len(valid):
        axes.plot(
            *valid.T, color=ACCENT, marker="o", markersize=4, linewidth=1.5, label="validation"
        )
        axes.annotate(
            f"{valid[-1, 1]:.3f}", valid[-1], xytext=(0, 9), textcoords="offset points",
            ha="right", color=ACCENT, fontsize=10,
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title or "Loss")
    axes.margins(x=0.02)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.has_data():
        axes.legend(frameon=False)
    write(figure, path)


def plot_expert_load(
    path: str | os.PathLike, load: dict[int, list[float]], title: str = ""
) -> None:
    """Writes a PNG of a heatmap, layers by experts, of `Report.expert_load`.

    Layers of fewer experts than the widest leave cells empty.
    """
    widest = max(len(row) for row in load.values())
    table = np.full((len(load), widest), np.nan)
    for i, row in enumerate(load.values()):
        table[i, : len(row)] = row
    figure, axes = figure_of(
        max(5.0, 2.5 + 0.3 * min(widest, 40)), max(2.6, 1.6 + 0.35 * len(load))
    )
    image = axes.imshow(
        table, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, interpolation="nearest"
    )
    axes.set(xlabel="expert", ylabel="layer", title=title or "Expert load on validation")
    axes.set_yticks(range(len(load)), [str(n) for n in load])
    if widest <= 16:
        axes.set_xticks(range(widest))
        for (i, j), value in np.ndenumerate(table):
            if np.isfinite(value):
                dark = abs(value - 1) > 0.6
                axes.text(
                    j, i, f"{value:.1f}", ha="center", va="center", fontsize=7,
                    color="white" if dark else "black",
                )  # fmt: skip
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(
        image, ax=axes, label="share / even share", extend="max", fraction=0.05, pad=0.02
    )
    write(figure, path)


def _running_mean(points: np.ndarray, width: int) -> np.ndarray:
    """Means over `width` neighbours [n, 2] -> [n - width + 1, 2], placed at their centres."""
    kernel = np.full(width, 1 / width)
    return np.stack([np.convolve(column, kernel, mode="valid") for column in points.T], axis=1)


def figure_of(width: float, height: float, rows: int = 1):
    """A figure and its axes (an array of them for several rows), in the style of all our plots.

    It is made without pyplot, so that nothing global (a notebook's backend) is touched.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # It tells of making its font cache.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows)
    for one in np.atleast_1d(axes):
        one.grid(True, color="#e6e6e6", linewidth=0.8)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def write(figure, path: str | os.PathLike) -> None:
    """Writes a figure to a file, whose folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
