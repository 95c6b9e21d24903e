"""One page that needs nothing else: headings, plots and words in a single file of HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from foretoken.core.errors import ForetokenError

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = ("#2a6fdb", "#e07b39", "#3a9d5d", "#8e5bb5", "#c23b4e", "#6b7280")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; max-width: 1000px; margin: 2em auto;
  padding: 0 1em }
h1 { font-size: 1.6em; margin-bottom: 0 } h2 { font-size: 1.15em; margin: 2em 0 0 } p { margin: .3em 0 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .9em .2em 0; text-align: right }
th { border-bottom: 1px solid #cbd2d9; font-weight: 600 } td:first-child, th:first-child { text-align: left }
pre { background: #f4f6f8; padding: .7em 1em; overflow-x: auto } .note { color: #616e7c }
"""


def require_plotly() -> None:
    """Say at once that a page cannot be made, not after all the work.

    Raises:
        ForetokenError: If plotly is missing.
    """
    if find_spec("plotly") is None:
        raise ForetokenError("A page needs plotly: pip install 'foretoken[report]'.")


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


def make_page(title: str, lead: str, sections: Sequence[tuple[str, str, go.Figure | None]]) -> str:
    """One file with plotly in it, so that it opens without a network."""
    parts = []
    loaded = False
    for heading, said, figure in sections:
        parts.append(f"<h2>{html.escape(heading)}</h2>" + (f'<p class="note">{said}</p>' if said else ""))
        if figure is not None:
            config = {"displayModeBar": False, "responsive": True}
            parts.append(figure.to_html(full_html=False, include_plotlyjs=not loaded, config=config))
            loaded = True
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{lead}\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
