"""The comparison as one HTML page that loads nothing: a table, and figures that follow its filter, order and choice."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from cl_runner.reports.collect import IDENTITY, Group
from cl_runner.reports.details import detail, rounded
from cl_runner.reports.losses import common_measure, said
from cl_runner.reports.markup import (
    Cell,
    Heading,
    asset,
    chips,
    escape,
    number,
    page,
    script,
    table,
    words,
)
from cl_runner.reports.metrics import METRICS, shown_metric, shown_spread

_TELLING = ("adapter", "strategy", "benchmark", "backbone", "experiment")
CARDS = {  # figures in their order; the script fills them, and hides one that has nothing to show
    "stored": "Accuracy against stored parameters",
    "trainable": "Accuracy against trainable parameters",
    "accuracy": "Accuracy on the tasks seen, over tasks",
    "forgetting": "Forgetting over tasks",
    "losses": "Loss on the tasks seen (nats a token), over tasks",
    "probes": "Accuracy on probe domains, mean over them, over tasks",
    "ranks": "Rank per adapted layer, after the last task",
    "growth": "Parameter growth over tasks",
    "epochs": "Epochs to converge, per task",
    "classes": "Accuracy per class, after the last task",
    "rank_curve": "Accuracy of the network cut to a rank",
    "rank_loss": "Loss (nats a token) of the network cut to a rank",
    "seconds": "Wall time",
    "memory": "Peak memory",
}


def as_html(groups: Sequence[Group], against: str = "") -> tuple[str, list[str]]:
    """Returns the page, and a sentence for every run whose tables could not be read.

    Args:
        groups: what to compare.
        against: a section of markup to add below the table.
    """
    shared = [key for key in IDENTITY if len({group.identity(key) for group in groups}) == 1]
    names = labels(groups)
    contents, problems = [], []
    for group in groups:
        content, wrong = detail(group)
        contents.append(content)
        problems += wrong
    data = [
        _data(index, group, name, content)
        for index, (group, name, content) in enumerate(zip(groups, names, contents, strict=True))
    ]
    measure = common_measure(content["measure"] for content in contents if content["tasks"])
    cards = "".join(_card(name, said(text, measure)) for name, text in CARDS.items())
    runs = sum(len(group.runs) for group in groups)
    title = f"{len(groups)} group{'s' * (len(groups) != 1)}, {runs} run{'s' * (runs != 1)}"
    body = [
        f"<header><h1>{title}</h1>",
        chips([(key, groups[0].identity(key)) for key in shared]),
        '<p class="soft">A row holds runs that differ only in their seed: mean, sample standard deviation, n. A click '
        "on a heading sorts; the figures follow the filter and the order. A click on rows chooses whose curves are "
        "drawn; with none chosen, those of the first six rows.</p></header><main>",
        _tools(groups, [key for key in IDENTITY if key not in shared]),
        _table(groups, shared, contents),
        against,
        f'<h2 id="matrices-title">{said("Accuracy matrices", measure)}</h2><div class="cards" id="matrices"></div>',
        f'<h2>Figures</h2><div class="cards" id="figures" data-measure="{measure}">{cards}</div>',
        "</main><footer>cl-report</footer>",
    ]
    scripts = [
        script(packed(json.dumps(data, separators=(",", ":"))), type="text/plain", id="data"),
        script(_library(), type="text/plain", id="library"),
        script(asset("plots.js")),
        script(asset("page.js")),
    ]
    return page(title, "\n".join(body), scripts), problems


def labels(groups: Sequence[Group]) -> list[str]:
    """Returns what tells the groups apart, in few words: what differs most often comes first, as names get cut."""
    differing = [key for key in _TELLING if len({group.identity(key) for group in groups}) > 1]
    common: dict[str, set[str]] = {}
    for group in groups:
        own = set(group.settings.split())
        common[group.identity("experiment")] = common.get(group.identity("experiment"), own) & own
    found = []
    for group in groups:
        shared = common[group.identity("experiment")]
        settings = " ".join(word for word in group.settings.split() if word not in shared)
        first = [group.identity(key) for key in differing if key in _TELLING[:2]]
        found.append(
            " · ".join(filter(None, [*first, settings, *(group.identity(key) for key in differing[len(first) :])]))
        )
    return [
        text or " · ".join(filter(None, (group.identity("adapter"), group.identity("strategy"))))
        for text, group in zip(found, groups, strict=True)
    ]


def _tools(groups: Sequence[Group], differing: Sequence[str]) -> str:
    menus = []
    for key in differing:
        names = sorted({group.identity(key) for group in groups})
        options = "".join(f'<option value="{escape(name)}">{escape(name) or "–"}</option>' for name in names)
        menus.append(f'<label>{key} <select data-key="{key}"><option value="*">all</option>{options}</select></label>')
    search = '<input type="search" id="filter" placeholder="filter: words that a row holds" aria-label="filter">'
    return (
        f'<div class="tools">{search}{"".join(menus)}<button id="clear">choose none</button>'
        '<span class="soft" id="count"></span></div>'
    )


def _table(groups: Sequence[Group], shared: Sequence[str], contents: Sequence[dict[str, Any]]) -> str:
    """Columns that no group has a value in are left out."""
    texts = [key for key in IDENTITY if key not in shared]
    settings = any(group.settings for group in groups)
    means = {name: [group.mean(metric.key) for group in groups] for name, metric in METRICS.items()}
    metrics = [name for name in METRICS if any(value is not None for value in means[name])]
    epochs = [_epochs(content) for content in contents]
    headings = [Heading(key, is_text=True, sorts=True) for key in texts]
    if settings:
        headings.append(Heading("settings", is_text=True, sorts=True))
    headings.append(Heading("n", "runs, one a seed", sorts=True))
    headings += [Heading(METRICS[name].title, METRICS[name].hint, sorts=True) for name in metrics]
    headings.append(Heading("epochs", "epochs to converge, mean over the tasks", sorts=True))
    rows = []
    for index, group in enumerate(groups):
        row = [words(group.identity(key)) for key in texts] + ([words(group.settings, "text wide")] if settings else [])
        row.append(number(len(group.runs), str(len(group.runs))))
        row += [_metric(group, name, means[name][index]) for name in metrics]
        row.append(number(epochs[index], "" if epochs[index] is None else f"{epochs[index]:.1f}"))
        rows.append(row)
    return table(headings, rows, "groups", list(range(len(groups))))


def _metric(group: Group, name: str, mean: float | None) -> Cell:
    spread = shown_spread(name, group.deviation(METRICS[name].key))
    return number(mean, shown_metric(name, mean), f"± {spread}" if spread else "")


def _epochs(content: dict[str, Any]) -> float | None:
    known = [value for value in content.get("parameters", {}).get("epochs", []) if value is not None]
    return sum(known) / len(known) if known else None


def _card(name: str, title: str) -> str:
    buttons = "".join(f'<button data-form="{form}">{form.upper()}</button>' for form in ("svg", "png"))
    caption = f'<figcaption><span>{title} <small class="soft note"></small></span>{buttons}</figcaption>'
    return f'<figure class="card" id="card-{name}">{caption}<div class="plot" id="plot-{name}"></div></figure>'


def _data(index: int, group: Group, label: str, content: dict[str, Any]) -> dict[str, Any]:
    """What the script draws of one group; places of runs as the reader named them."""
    keys = ("acc", "stored_parameters", "trainable_parameters", "wall_seconds", "peak_memory_bytes")
    means = {key: [group.mean(key), group.deviation(key)] for key in keys}
    runs = [
        {
            "folder": str(run.folder),
            "command": run.command,
            "seed": run.summary.get("seed"),
            "values": [run.summary.get(key) for key in keys],
        }
        for run in group.runs
    ]
    names = {"label": label, "benchmark": group.identity("benchmark")}
    return {"id": index, **names, "means": rounded(means), "runs": rounded(runs), **rounded(content)}


@cache
def _library() -> str:
    """Plotly's script for pages without a network: 2 MB instead of 5."""
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())


def packed(text: str) -> str:
    """Returns text compressed and in base64, in which nothing can end an element; `unpacked` in page.js reads it."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
