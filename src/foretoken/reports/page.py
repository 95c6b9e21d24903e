"""A self-contained page: headings, plots and text in a single HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from foretoken.core.errors import ForetokenError

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = ("#2a6fdb", "#e07b39", "#3a9d5d", "#8e5bb5", "#c23b4e", "#6b7280")


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Args:
        heading: Its title.
        note: A sentence or two below it.
        figure: A plot. If None, there is none.
    """

    heading: str
    note: str = ""
    figure: go.Figure | None = None


def require_report() -> None:
    """Say before all the work that a page cannot be made.

    Raises:
        ForetokenError: If plotly or jinja2 is missing.
    """
    for name in ("plotly", "jinja2"):
        if find_spec(name) is None:
            raise ForetokenError(f"A page needs {name}: pip install 'foretoken[report]'.")


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name; they come again where there are more names."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


def styled(figure: go.Figure, height: int, width: int | None = None) -> go.Figure:
    """The figure as all figures here look."""
    figure.update_layout(
        template="simple_white",
        height=height,
        width=width,
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1f2933"},
        margin={"l": 60, "r": 30, "t": 50, "b": 60},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "xanchor": "left"},
        showlegend=True,
    )
    figure.update_xaxes(showgrid=True, gridcolor="#e4e7eb")
    figure.update_yaxes(showgrid=True, gridcolor="#e4e7eb")
    return figure


def make_page(
    title: str, lead: Sequence[str], sections: Sequence[Section], table: Sequence[Mapping[str, str]] = ()
) -> str:
    """One file with plotly in it, so that it opens without a network. All texts are escaped.

    Args:
        title: Of the page.
        lead: Sentences, a paragraph each.
        sections: What follows the lead and the table.
        table: Rows of cells by the heading of their column.
    """
    from jinja2 import Environment, PackageLoader

    plots: list[str] = []
    for section in sections:
        config = {"displayModeBar": False, "responsive": True}
        once = not any(plots)  # the library itself stands before the first plot
        figure = section.figure
        plots.append(figure.to_html(full_html=False, include_plotlyjs=once, config=config) if figure else "")
    pages = Environment(
        loader=PackageLoader("foretoken.reports", "."), autoescape=True, trim_blocks=True, keep_trailing_newline=True
    )
    template = pages.get_template("page.html.jinja")
    return template.render(title=title, lead=lead, table=table, sections=sections, plots=plots)
