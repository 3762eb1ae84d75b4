"""Matplotlib to inline SVG that follows the page's colours and fonts. Knows no results.

One unit of a plot is one pixel on a phone: it is drawn 350 units wide with letters of 11, and scales up from there.
Colours are drawn as on a light page and written as CSS variables, so a dark page shows the same plot in its own.
"""

import html
import importlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...core.errors import MisoError

WIDTH = 350.0
_UNITS_PER_INCH = 72.0
_SALT = "miso-gguf"

INK, MUTED, RULE, PAPER = "#22262b", "#5d6670", "#d8d4cb", "#fffefb"
LEVEL_COLOURS = ("#6b7078", "#1e6eb0", "#bf5518", "#7a4ab2", "#14806a", "#ad315d", "#8c6d12", "#4d7f1e")
"""The reference's grey first; no more can be told apart. They repeat, and their number and that of the markers have no
common divisor: no two of 72 levels have both alike."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h")
MANY = len(LEVEL_COLOURS)
"""Levels from which on a figure is drawn so that nobody has to tell them apart by colours."""
CSS_NAMES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--card",
    **{colour: f"--level-{index}" for index, colour in enumerate(LEVEL_COLOURS)},
}

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": _SALT,
    # A level's name may hold a dollar sign, which is not mathematics.
    "text.parse_math": False,
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.labelsize": 11,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 11,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.handlelength": 1.8,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Plot:
    """An SVG element to put into a page.

    Attributes:
        svg: Safe markup.
        title: In a few words.
        text: What is to be seen, for those who cannot.
    """

    svg: str
    title: str
    text: str


def drawn(name: str, title: str, text: str, height: float, paint: Callable[[Any], None]) -> Plot:
    """What `paint` does to the axes of a figure 350 x `height` units. The same input gives the same bytes.

    Args:
        name: Of this plot in the page: letters, digits and hyphens, unique.
        title: Becomes the SVG's title.
        text: Becomes its description.
        height: In units.
        paint: Gets matplotlib axes.

    Raises:
        MisoError: Matplotlib is not installed.
    """
    matplotlib, figures = library("matplotlib"), library("matplotlib.figure")
    # Settings are matplotlib's only way to a constant salt and to text as text; they are put back on leaving.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        size = (WIDTH / _UNITS_PER_INCH, height / _UNITS_PER_INCH)
        figure = figures.Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=2 / _UNITS_PER_INCH, h_pad=3 / _UNITS_PER_INCH)
        paint(figure.add_subplot())
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Plot(_inline(content.getvalue(), name, title, text), title, text)


def colour_of(index: int) -> str:
    """Colour of the level at that place in the results."""
    return LEVEL_COLOURS[index % len(LEVEL_COLOURS)]


def marker_of(index: int) -> str:
    """Its marker."""
    return MARKERS[index % len(MARKERS)]


def _inline(svg: str, name: str, title: str, text: str) -> str:
    """A whole SVG file as an element of a page among others."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    # A style sheet inside would hold for the whole page, and the same ids are in every file.
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"<>]*)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    body = re.sub(r"\n\s*", "\n", body)
    for colour, variable in CSS_NAMES.items():
        body = body.replace(colour, f"var({variable})")
    view_box = re.search(r'viewBox="[\d. -]+"', svg)
    assert view_box is not None
    return (
        f'<svg {view_box[0]} role="img" aria-labelledby="{name}-title {name}-text" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink"><title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-text">{html.escape(text)}</desc>{body}</svg>'
    )


def library(name: str) -> Any:
    """The module called `name`. Raises `MisoError` with the remedy if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".", maxsplit=1)[0]
        raise MisoError(f"the HTML report needs {package}: pip install 'miso-gguf[eval]'") from error


def check_installed() -> None:
    """Raise `MisoError` unless all is there: for asking before hours of work, not after."""
    for name in ("jinja2", "matplotlib.figure"):
        library(name)
