"""Trained heads as one page: how right each is, how sure, how often it repeats, and what its drafts are accepted."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foretoken.measure.speculator import Analysis
from foretoken.reports.page import Section, colours, make_page, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go


def speculator_page(found: Sequence[Analysis], model: str, speculator: str) -> str:
    """The page of ``foretoken bench speculator``.

    Args:
        found: For each way of decoding, at least one.
        model: Its name.
        speculator: The folder of the heads.
    """
    lead = [f"Heads {speculator} of the model {model}, on its own answers; those that loop are left out."]
    lead += [_sentence(one) for one in found]
    sections: list[Section] = []
    for one in found:
        sections += [
            Section(
                f"Tokens for each step: {one.decoding}",
                "Replayed on the answers. An oracle finds the right path wherever it lies among the best tokens of "
                "each head, or among all candidates, from which the drafters choose.",
                _lengths(one.lengths),
            ),
            Section(
                f"How often the right token is among a head's best: {one.decoding}",
                "The true tokens before it given.",
                _accuracy(one.heads),
            ),
            Section(
                f"How sure the heads are: {one.decoding}",
                "Mean entropy in nats, all tokens beyond the 64 likeliest taken as one.",
                _by_head(one.heads, "entropy", "nats"),
            ),
            Section(
                f"How often a head repeats the guess of the one before: {one.decoding}",
                "Best guesses along the best guesses; the first head is compared with the last token. The dotted line "
                "is how often the answers repeat a token.",
                _by_head(one.heads, "repeated", "share", one.text_repeats),
            ),
        ]
    return make_page("What trained heads know", lead, sections, [row for one in found for row in _in_words(one)])


def length_rows(found: Analysis) -> list[dict[str, Any]]:
    """Tokens a step: a row for each drafter, a column for each kind of prompt."""
    names = dict.fromkeys(line["method"] for line in found.lengths)
    return [
        {"decoding": found.decoding, "drafter": name}
        | {line["kind"]: line["tokens_per_step"] for line in found.lengths if line["method"] == name}
        for name in names
    ]


def _in_words(found: Analysis) -> list[dict[str, str]]:
    """The rows of ``length_rows`` for the page, with how many tokens a drafter guesses in a step."""
    guesses = {line["method"]: line["drafted_per_step"] for line in found.lengths}
    rows = []
    for row in length_rows(found):
        drafted = guesses[row["drafter"]]
        cells = {name: f"{value:.2f}" if isinstance(value, float) else value for name, value in row.items()}
        first = {"decoding": "", "drafter": "", "guesses": f"{drafted:.1f}" if drafted else ""}
        rows.append(first | cells)
    return rows


def _sentence(found: Analysis) -> str:
    said = f"{found.decoding}: {found.answers} answers, and {found.looped} more that loop. "
    first = " ".join(f"{line['top'][0]:.2f}" for line in found.heads)
    return f"{said}Best guess right, by head: {first}. The mean entropy rises up to head {found.rising}."


def _lengths(lines: Sequence[dict[str, Any]]) -> go.Figure:
    """A row for each drafter, and a dot for each kind of prompt."""
    import plotly.graph_objects as go

    order = list(dict.fromkeys(line["method"] for line in lines))[::-1]
    kinds = [kind for kind in dict.fromkeys(line["kind"] for line in lines) if kind != "all"]
    looks: dict[str, dict[str, Any]] = {kind: {"size": 10, "color": colour} for kind, colour in colours(kinds).items()}
    figure = go.Figure()
    for kind, marker in (looks | {"all": {"size": 14, "color": "#1f2933", "symbol": "diamond"}}).items():
        own = [line for line in lines if line["kind"] == kind]
        figure.add_scatter(
            x=[line["tokens_per_step"] for line in own],
            y=[line["method"] for line in own],
            customdata=[[line["answers"]] for line in own],
            hovertemplate="%{y}: %{x:.2f} tokens, %{customdata[0]} answers",
            mode="markers",
            marker=marker | {"opacity": 0.9},
            name=html.escape(kind),  # plotly takes tags and links in a name for its own
        )
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order, automargin=True)
    figure.update_xaxes(title="tokens per step")
    return styled(figure, height=130 + 30 * len(order))


def _accuracy(heads: Sequence[dict[str, Any]]) -> go.Figure:
    """A line for each head over the number of its best tokens."""
    import plotly.graph_objects as go

    figure = go.Figure()
    names = [f"head {line['head']}" for line in heads]
    for line, colour in zip(heads, colours(names).values(), strict=True):
        ranks = [*range(1, len(line["top"]) + 1)]
        name = f"head {line['head']}"
        figure.add_scatter(x=ranks, y=line["top"], name=name, mode="lines+markers", line={"color": colour})
    figure.update_xaxes(title="best tokens")
    figure.update_yaxes(title="right one among them", rangemode="tozero")
    return styled(figure, height=380)


def _by_head(heads: Sequence[dict[str, Any]], name: str, unit: str, level: float | None = None) -> go.Figure:
    """A bar for each head, and perhaps a level to compare with."""
    import plotly.graph_objects as go

    labels = [f"head {line['head']}" for line in heads]
    figure = go.Figure(go.Bar(x=labels, y=[line[name] for line in heads], marker={"color": colours([name])[name]}))
    if level is not None:
        figure.add_hline(y=level, line={"color": "#9aa5b1", "dash": "dot"})
    figure.update_yaxes(title=unit, rangemode="tozero")
    return styled(figure, height=320).update_layout(showlegend=False)
