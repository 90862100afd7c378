"""Figures as PNG files, drawn by matplotlib (the extra nlrn[plot])."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

from nlrn.errors import BackendError
from nlrn.system.atomic import publish


def check_plot() -> None:
    """Raises BackendError without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendError("a plot needs matplotlib: pip install nlrn[plot]")


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of that many inches, without any window. Raises BackendError without matplotlib."""
    check_plot()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, path: Path, *, overwrite: bool = True) -> None:
    """Write a figure as a PNG, atomically. Raises InputError."""
    data = io.BytesIO()
    figure.savefig(data, dpi=110, format="png")
    publish(path, data.getvalue(), overwrite=overwrite)
