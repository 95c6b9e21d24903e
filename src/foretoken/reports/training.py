"""A training of a speculator as one page: what it accepts, and how often each head is right, over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foretoken.reports.page import Section, colours, make_page, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

History = Sequence[dict[str, Any]]


def training_page(kind: str, base: str, history: History) -> str:
    """The page of ``foretoken train``.

    Args:
        kind: Of the speculator.
        base: Name of the model.
        history: As ``Training.history`` has it: a judgement each.
    """
    best = max(history, key=lambda line: line["accepted_length"], default=None)
    lead = [f"Base {base}. Judged on texts that the base generated from held-out prompts."]
    if best is not None:
        lead.append(f"The speculator of step {best['step']} was kept: accepted length {best['accepted_length']:.3f}.")
    lengths = {"accepted length": [line["accepted_length"] for line in history]}
    sections = [
        Section(
            "Accepted length", "Tokens of a step, drafted by the best guess of every head.", _plot(history, lengths)
        ),
        Section("Best guess right", "Given the true tokens before it.", _plot(history, _by_head(history, "top1"))),
        Section(
            "Loss",
            "Cross-entropy with the base's own probabilities, in nats.",
            _plot(history, _by_head(history, "losses")),
        ),
    ]
    return make_page(f"Training of {kind}", lead, sections, [_row(line) for line in history])


def _by_head(history: History, name: str) -> dict[str, list[float]]:
    heads = len(history[0][name]) if history else 0
    return {f"head {i + 1}": [line[name][i] for line in history] for i in range(heads)}


def _row(line: dict[str, Any]) -> dict[str, str]:
    return {
        "step": str(line["step"]),
        "stage": line["stage"],
        "accepted length": f"{line['accepted_length']:.3f}",
        "top-1 of the heads": " ".join(f"{share:.3f}" for share in line["top1"]),
        "losses": " ".join(f"{loss:.2f}" for loss in line["losses"]),
    }


def _plot(history: History, curves: dict[str, list[float]]) -> go.Figure:
    """A line for each curve over the steps; a dotted line where the base's own texts begin."""
    import plotly.graph_objects as go

    steps = [line["step"] for line in history]
    figure = go.Figure()
    for (name, values), colour in zip(curves.items(), colours(curves).values(), strict=True):
        figure.add_scatter(x=steps, y=values, name=name, mode="lines+markers", line={"color": colour})
    text_steps = [line["step"] for line in history if line["stage"] == "text"]
    if text_steps and len(text_steps) < len(history):
        figure.add_vline(x=text_steps[-1], line={"color": "#9aa5b1", "dash": "dot"})
    figure.update_xaxes(title="step")
    return styled(figure, height=340)
