"""What all static pictures share: colours, style, one pair of axes, a file. Imports matplotlib only when it draws.

Colours are Okabe and Ito's, safe for colour-blind readers; markers differ too.
"""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cl_runner.errors import RequestError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "cl-run",  # the same numbers give the same file
    "svg.fonttype": "none",  # text stays text: small, and can be searched
    "text.parse_math": False,  # a $ in a name is a $
}
_NOTHING_BUT_THE_PICTURE = {"Date": None, "Creator": None, "Format": None, "Type": None}


def style() -> AbstractContextManager[None]:
    """Returns the style to draw and to save in."""
    from matplotlib import rc_context

    return rc_context(_STYLE)  # type: ignore[arg-type]  # its keys are a long list of literals


def new_axes(x: str, y: str, *, columns: int = 1, size: tuple[float, float] = (7, 4.8)) -> tuple[Any, Any]:
    """Returns a figure and its labelled axes, a list of several columns; no global state knows it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for one in axes:
        one.set_xlabel(x)
        one.set_ylabel(y)
    return figure, axes[0] if columns == 1 else axes


def save(figure: Any, path: Path, dpi: int = 150) -> None:
    """Writes a picture; its folder is made.

    Raises:
        RequestError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        form = path.suffix.lower().removeprefix(".")
        dateless = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
        if form == "png":
            _lay_out(figure, dpi)
        figure.savefig(path, dpi=dpi, format=form, metadata=dateless)
        figure.set_layout_engine(None)  # what comes next keeps this layout, the better half of the work
    except OSError as error:
        raise RequestError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error


def _lay_out(figure: Any, dpi: int) -> None:
    """Settles the layout as saving would, which goes through the whole picture once for that alone."""
    drawn_at, figure.dpi = figure.dpi, dpi
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine(None)
    figure.dpi = drawn_at


def as_svg(figure: Any) -> str:
    """Returns the picture as an element for a page, without declarations and with a width of its own."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=_NOTHING_BUT_THE_PICTURE)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r"[ \t]*\n[ \t]*", "\n", svg).strip()  # indentation is a tenth of it


def look_of(number: int) -> tuple[str, str]:
    """Colour and marker of a series; where colours come around again, markers have moved on: no two are alike."""
    return COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
