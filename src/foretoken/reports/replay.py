"""The figures of a replay as one page: plots of acceptance, of the drafter's time and of calibration."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from foretoken.core.stats import DecodeStats
from foretoken.replay.calibration import BINS, Reliability
from foretoken.replay.job import Item, JobResult, figures
from foretoken.replay.tune import Advice
from foretoken.reports.page import Section, colours, make_page, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go


def replay_page(results: Sequence[JobResult]) -> str:
    """The page of ``foretoken replay``."""
    results = [result for result in results if result.items]
    sections = [
        Section("Tokens for each step, by task", figure=_by_task(results)),
        Section(
            "Tokens for each step against drafted tokens",
            "All files together, the budget in each point. Higher: fewer forwards; left: less to check.",
            _by_budget(results),
        ),
        _calibration_section(results),
    ]
    answers = max(sum(len(result.items) for result in group) for group in _grouped(results).values())
    files = len({result.job.label for result in results})
    return make_page("Drafters on recorded answers", [f"{answers} answers of {files} files."], sections)


def tune_page(advice: Advice, results: Sequence[JobResult], costs: str) -> str:
    """The page of ``foretoken tune``."""
    best = advice.best.setting
    results = [result for result in results if result.items]
    chosen = [result for result in results if (result.job.drafter, result.job.budget) == (best.drafter, best.budget)]
    tree_runs = [result for result in chosen if result.job.trees]
    sections = [
        Section(
            "Expected speed over plain decoding",
            f"Forwards cost {costs}; whiskers hold 95 % of resampled answers; the time of drafting itself "
            "is not in it.",
            _speeds(advice),
        ),
        _calibration_section(results),
    ]
    if chosen:
        heading = "Tokens for each step with the best drafter, by task"
        sections.insert(1, Section(heading, figure=_by_task(tree_runs or chosen)))
    return make_page("Settings for these logs", sentences(advice), sections)


def sentences(advice: Advice) -> list[str]:
    """The advice in words."""
    best = advice.best
    if best.setting.budget == 0:
        said = "No drafter pays on these logs at these costs: decode plainly (--drafter none)."
    else:
        kind = "trees" if best.setting.trees else "chains"
        said = (
            f"Use --drafter {best.setting.drafter} --budget {best.setting.budget} ({kind}): expect "
            f"{best.speed:.2f}x ({best.low:.2f} to {best.high:.2f}), {best.tokens_per_step:.2f} tokens a step."
        )
    config, outcome = advice.ngram[0]
    return [
        said,
        f"For vLLM's ngram method, replayed with an emulation: {_flat(config)}; expect {outcome.speed:.2f}x "
        f"({outcome.low:.2f} to {outcome.high:.2f}).",
        f"For vLLM's suffix method, unmeasured, the closest counterpart: {_flat(advice.suffix)}.",
    ]


def tasks(results: Sequence[JobResult]) -> list[dict[str, Any]]:
    """Figures by task, for JSON and the page; the file's name where the log names no task."""
    rows = []
    for (drafter, budget, trees), group in _grouped(results).items():
        for task, items in _items_by_task(group).items():
            stats = DecodeStats.total(item.stats for item in items)
            rows.append(
                {
                    "task": task,
                    "drafter": drafter,
                    "budget": budget,
                    "trees": trees,
                    "answers": len(items),
                    "tokens": stats.tokens,
                    "tokens_per_step": stats.acceptance_length,
                    "accept_rate": stats.acceptance_rate,
                }
            )
    return rows


def calibration(results: Sequence[JobResult]) -> list[dict[str, Any]]:
    """Reliability of each drafter that gives probabilities, on each file, for JSON."""
    return [
        {
            "file": result.job.label,
            "drafter": result.job.drafter,
            "budget": result.job.budget,
            "trees": result.job.trees,
        }
        | result.reliability.as_dict()
        for result in results
        if sum(result.reliability.nodes)
    ]


def _grouped(results: Iterable[JobResult]) -> dict[tuple[str, int, bool], list[JobResult]]:
    groups: dict[tuple[str, int, bool], list[JobResult]] = {}
    for result in results:
        groups.setdefault((result.job.drafter, result.job.budget, result.job.trees), []).append(result)
    return groups


def _items_by_task(results: Sequence[JobResult]) -> dict[str, list[Item]]:
    items: dict[str, list[Item]] = {}
    for result in results:
        for item in result.items:
            items.setdefault(item.task or result.job.title, []).append(item)
    return items


def _flat(config: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in config.items() if key != "method")


def _by_task(results: Sequence[JobResult]) -> go.Figure:
    """A dot for each drafter on each task, at one budget: many tasks stay readable where bars would not."""
    import plotly.graph_objects as go

    budget = results[0].job.budget
    rows = [row for row in tasks(results) if row["budget"] == budget]
    of_task: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        row["task"] = html.escape(row["task"])  # plotly takes tags and links in a name for its own
        of_task[row["task"]].append(row["tokens_per_step"])
    order = sorted(of_task, key=lambda task: max(of_task[task]))
    figure = go.Figure()
    for drafter, colour in colours(row["drafter"] for row in rows).items():
        mine = {row["task"]: row for row in rows if row["drafter"] == drafter}
        shown = [task for task in order if task in mine]
        figure.add_scatter(
            x=[mine[task]["tokens_per_step"] for task in shown],
            y=shown,
            customdata=[[mine[task]["accept_rate"], mine[task]["answers"]] for task in shown],
            hovertemplate="%{y}: %{x:.2f} tokens/step, %{customdata[0]:.0%} accepted, %{customdata[1]} answers",
            mode="markers",
            marker={"size": 11, "color": colour, "opacity": 0.9},
            name=drafter,
        )
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order, automargin=True)
    # From 1, which is plain decoding.
    most = max(row["tokens_per_step"] for row in rows)
    figure.update_xaxes(title=f"tokens per step, budget {budget}", range=[1 - 0.02 * (most - 1), 1 + 1.05 * (most - 1)])
    return styled(figure, height=130 + 24 * len(order))


def _by_budget(results: Sequence[JobResult]) -> go.Figure:
    import plotly.graph_objects as go

    points: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for (drafter, budget, _), group in _grouped(results).items():
        points[drafter].append((budget, figures(group)))
    figure = go.Figure()
    for drafter, colour in colours(points).items():
        found = sorted(points[drafter], key=lambda point: point[0])
        figure.add_scatter(
            x=[numbers["drafted_per_step"] for _, numbers in found],
            y=[numbers["tokens_per_step"] for _, numbers in found],
            text=[str(budget) for budget, _ in found],
            hovertemplate="budget %{text}: %{x:.2f} drafted, %{y:.2f} tokens",
            mode="lines+markers+text",
            textfont={"color": "white", "size": 10},
            cliponaxis=False,
            marker={"size": 18, "color": colour},
            line={"color": colour, "width": 2},
            name=drafter,
        )
    figure.update_xaxes(title="drafted tokens per step", rangemode="tozero")
    figure.update_yaxes(title="tokens per step")
    return styled(figure, height=430)


def _speeds(advice: Advice) -> go.Figure:
    import plotly.graph_objects as go

    lines: dict[str, list[tuple[int, float, float, float]]] = defaultdict(list)
    for outcome in advice.outcomes:
        if outcome.setting.budget:
            name = outcome.setting.drafter + (", trees" if outcome.setting.trees else ", chains")
            lines[name].append((outcome.setting.budget, outcome.speed, outcome.low, outcome.high))
    for config, outcome in advice.ngram:
        low, high = config["prompt_lookup_min"], config["prompt_lookup_max"]
        if (low, high) == tuple(advice.ngram[0][0][key] for key in ("prompt_lookup_min", "prompt_lookup_max")):
            name = f"vLLM ngram {low}-{high}, emulated"
            lines[name].append((outcome.setting.budget, outcome.speed, outcome.low, outcome.high))
    figure = go.Figure()
    shift = 0.16  # whiskers of several drafters at one budget stand side by side
    for i, (name, colour) in enumerate(colours(lines).items()):
        found = sorted(lines[name])
        figure.add_scatter(
            x=[budget + shift * (i - (len(lines) - 1) / 2) for budget, *_ in found],
            y=[speed for _, speed, _, _ in found],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - speed for _, speed, _, high in found],
                "arrayminus": [speed - low for _, speed, low, _ in found],
                "thickness": 1.4,
                "width": 4,
            },
            text=[str(budget) for budget, *_ in found],
            hovertemplate="budget %{text}: %{y:.2f}x",
            mode="lines+markers",
            marker={"size": 8, "color": colour},
            line={"color": colour, "width": 2},
            name=name,
        )
    budgets = sorted({budget for found in lines.values() for budget, *_ in found})
    figure.add_hline(y=1, line={"color": "#9aa5b1", "dash": "dot"})
    figure.update_xaxes(title="budget, drafted tokens at most", tickvals=budgets)
    figure.update_yaxes(title="speed, plain = 1")
    return styled(figure, height=460)


def _calibration_section(results: Sequence[JobResult]) -> Section:
    title = "Calibration: how often a guess was right against the chance it was given"
    found: dict[str, Reliability] = {}
    for drafter in dict.fromkeys(result.job.drafter for result in results):
        whole = Reliability.total(result.reliability for result in results if result.job.drafter == drafter)
        if sum(whole.nodes):
            found[drafter] = whole
    if not found:
        return Section(title, "No drafter here gives probabilities.")
    said = f"On the diagonal is right. {BINS} bins; the larger the point, the more guesses. All budgets together."
    return Section(title, said, _reliability(found))


def _reliability(found: dict[str, Reliability]) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": "#9aa5b1", "dash": "dot"}, hoverinfo="skip", showlegend=False
    )
    for drafter, colour in colours(found).items():
        bins = found[drafter].as_dict()["bins"]
        most = max(row["nodes"] for row in bins)
        figure.add_scatter(
            x=[row["mean_prob"] for row in bins],
            y=[row["right"] for row in bins],
            customdata=[row["nodes"] for row in bins],
            hovertemplate="given %{x:.2f}, right %{y:.2f}, %{customdata} guesses",
            mode="lines+markers",
            marker={"size": [6 + 16 * (row["nodes"] / most) ** 0.5 for row in bins], "color": colour},
            line={"color": colour, "width": 1.5},
            name=f"{drafter}, expected error {found[drafter].error:.3f}",
        )
    figure.update_xaxes(title="chance given, if its parent is right", range=[-0.03, 1.03])
    figure.update_yaxes(title="share that was right", range=[-0.03, 1.03])
    return styled(figure, height=520, width=680)
