"""The methods as one page: how fast each is on each kind of text, and what it accepts for its rows."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foretoken.measure.harness import headline
from foretoken.reports.page import Section, colours, make_page, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

Lines = Sequence[dict[str, Any]]


def methods_page(summary: Lines, model: str) -> str:
    """The page of ``foretoken bench methods``.

    Args:
        summary: As ``harness.summarise`` gives it.
        model: Its name.
    """
    kept = [line for line in summary if not line["looped"]]
    sections: list[Section] = []
    for dtype, decoding in dict.fromkeys((line["dtype"], line["decoding"]) for line in kept):
        some = [line for line in kept if (line["dtype"], line["decoding"]) == (dtype, decoding)]
        where = f"{dtype}, {decoding}"
        sections += [
            Section(
                f"Speed over plain decoding: {where}",
                "The prefill left out; plain and methods in turns.",
                _speeds(some),
            ),
            Section(
                f"Tokens for each step against rows of a forward: {where}",
                "All kinds of prompts. Higher: fewer forwards; left: cheaper ones.",
                _rows(headline(some)),
            ),
        ]
    lead = [f"{model}; answers that loop are left out."]
    return make_page("Methods of drafting against plain decoding", lead, sections, _table(headline(summary)))


def _table(lines: Lines) -> list[dict[str, str]]:
    return [
        {
            "method": line["method"],
            "": f"{line['dtype']}, {line['decoding']}",
            "speed": f"{line['speed']:.2f}x",
            "least": f"{line['least']:.2f}x",
            "tokens a step": f"{line['tokens_per_step']:.2f}",
            "rows a step": f"{line['rows_per_step']:.2f}",
            "drafter, ms a step": f"{line['drafter_ms']:.2f}",
            "same text": f"{line['same_text']} of {line['prompts']}",
        }
        for line in sorted(lines, key=lambda line: (line["dtype"], line["decoding"], -line["speed"]))
    ]


def _speeds(lines: Lines) -> go.Figure:
    """A row for each method, the fastest on top, and a dot for each kind of prompt."""
    import plotly.graph_objects as go

    order = [line["method"] for line in sorted(headline(lines), key=lambda line: line["speed"])]
    kinds = [kind for kind in dict.fromkeys(line["kind"] for line in lines) if kind != "all"]
    looks = {kind: {"size": 10, "color": colour} for kind, colour in colours(kinds).items()}
    figure = go.Figure()
    for kind, marker in (looks | {"all": {"size": 14, "color": "#1f2933", "symbol": "diamond"}}).items():
        own = [line for line in lines if line["kind"] == kind]
        figure.add_scatter(
            x=[line["speed"] for line in own],
            y=[line["method"] for line in own],
            customdata=[[line["least"], line["prompts"]] for line in own],
            hovertemplate="%{y}: %{x:.2f}x, the least %{customdata[0]:.2f}x, %{customdata[1]} prompts",
            mode="markers",
            marker=marker | {"opacity": 0.9},
            name=html.escape(kind),  # plotly takes tags and links in a name for its own
        )
    figure.add_vline(x=1, line={"color": "#9aa5b1", "dash": "dot"})
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order, automargin=True)
    figure.update_xaxes(title="speed, plain = 1")
    return styled(figure, height=130 + 26 * len(order))


def _rows(lines: Lines) -> go.Figure:
    """A dot for each method."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for line, colour in zip(lines, colours(line["method"] for line in lines).values(), strict=True):
        figure.add_scatter(
            x=[line["rows_per_step"]],
            y=[line["tokens_per_step"]],
            customdata=[[line["drafter_ms"]]],
            hovertemplate="%{x:.2f} rows, %{y:.2f} tokens, the drafter %{customdata[0]:.2f} ms",
            mode="markers+text",
            text=[line["method"]],
            textposition="middle right",
            cliponaxis=False,
            marker={"size": 11, "color": colour},
            name=line["method"],
        )
    figure.update_xaxes(title="rows of a forward", rangemode="tozero")
    figure.update_yaxes(title="tokens per step")
    return styled(figure, height=430).update_layout(showlegend=False)
