"""The look that all figures of a report share, and their HTML."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import plotly.graph_objects as go

RUN_COLORS = ("#2f7ae5", "#e8710a", "#2b9348", "#a83fc4", "#0b8a9e", "#d6336c")
"""Colours of runs, readable on a light page and on a dark one."""
MUTED, STRONG = "#868e96", "#d6336c"
HEIGHT = 380
"""Height of a figure in pixels."""
_BUTTONS = ["toImage", "zoom2d", "pan2d", "resetScale2d"]  # none that sends a figure anywhere
_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [_BUTTONS]}
_CLEAR = "rgba(0,0,0,0)"
_WIDTH = 40  # characters of a line of a hover label


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Args:
        anchor (`str`): its anchor, made of letters, digits and hyphens.
        figure (`plotly.graph_objects.Figure`): the figure.
        caption (`str`): what to see in it, as plain text.
        title (`str`, *optional*): a heading, as plain text.
    """

    kind: ClassVar[str] = "figure"
    anchor: str
    figure: "go.Figure"
    caption: str
    title: str = ""

    @property
    def html(self) -> str:
        """A `<div>` and the script that draws the figure in it."""
        div: str = self.figure.to_html(
            full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=self.anchor,
            default_height=f"{self.figure.layout.height}px",
        )  # fmt: skip
        return div


def color_of(index: int) -> str:
    """Colour of a run by its place on the page."""
    return RUN_COLORS[index % len(RUN_COLORS)]


def label_of(lines: Iterable[str]) -> str:
    """Lines of a hover label, narrow enough for a small screen."""
    parts = ([line] if len(line) <= _WIDTH else wrap(line, _WIDTH, subsequent_indent="  ") for line in lines)
    return "<br>".join(escaped(part) for of_line in parts for part in of_line)


def escaped(text: object) -> str:
    """A text for labels of plotly, which reads a part of HTML."""
    return html.escape(str(text))


def new_figure(traces: Sequence[Any] = (), *, height: int = HEIGHT, **layout: Any) -> "go.Figure":
    """A figure without a background, whose colours of text and grids the page's style sheet sets."""
    import plotly.graph_objects as go

    figure = go.Figure(list(traces))
    dress(figure, height, **layout)
    return figure


def dress(figure: "go.Figure", height: int, **layout: Any) -> None:
    """Give a figure the look of the page."""
    import plotly.graph_objects as go

    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": _CLEAR},
        hoverlabel={"align": "left", "font": {"family": "ui-monospace, monospace", "size": 11}},
        hovermode="closest",
        dragmode=False,
    )
    figure.update_layout(**layout)
    axes = {"automargin": True, "zeroline": False, "ticks": "", "exponentformat": "SI", "title_font": {"size": 13}}
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes)


def log_axis(values: Sequence[float]) -> dict[str, Any]:
    """Settings of an axis for values, logarithmic if all are above 0; ticks are plain numbers."""
    if not values or min(values) <= 0:
        return {}
    is_wide = max(values) > 5 * min(values)
    return {"type": "log", "dtick": "D2" if is_wide else None, "tickformat": "~r" if is_wide else None, "nticks": 8}
