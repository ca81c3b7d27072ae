"""Matplotlib, set up to keep its font list in qdeploy's cache instead of two folders in the user's home."""

from __future__ import annotations

import os

from qdeploy.data.places import cache_folder

os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # read when it is imported

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["Axes", "Figure", "FigureCanvasAgg", "FuncFormatter", "Line2D", "LogLocator", "NullFormatter"]
