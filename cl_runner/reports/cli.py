"""``cl-report PATH...``: compares the runs found under the paths."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from cl_runner.errors import RequestError
from cl_runner.reports import against, against_view
from cl_runner.reports.collect import Group, find_runs, group_runs
from cl_runner.reports.metrics import known_metric
from cl_runner.reports.retention import NUMBERS
from cl_runner.reports.tables import as_csv, as_json, as_latex, csv_text, ordered, show

COMPARISONS = ("pareto", "probe", "retention", "ranks", "rank_loss")
OF_RUNS = ("matrix", "tasks", "growth", "layers", "probes", "losses")
SUFFIXES = (".png", ".svg", ".pdf")
_NOTHING_PUBLISHED = "no run follows the protocol of a published figure"
_TEXT = {"csv": as_csv, "json": as_json, "latex": as_latex}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments; default those of the process.

    Returns:
        The exit code: 0, or 2 where the request cannot be met, after one or two lines on standard error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["sync"]:  # a folder of that name is ./sync
        from cl_runner.reports.sync import main as sync

        return sync(words[1:])
    if words[:1] == ["export"]:
        from cl_runner.reports.export import main as export

        return export(words[1:])
    arguments = _parser().parse_args(words)
    try:
        _check(arguments)
        groups = _collected(arguments.paths)
        if arguments.sort is not None:
            groups = ordered(groups, arguments.sort)
        if arguments.plot is not None:
            _draw(arguments.plot, groups, arguments.out)
        elif arguments.out is None:
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(errors="replace")  # a plus-minus sign must not end the command
            _write(groups, arguments, sys.stdout)
        else:
            _save(groups, arguments)
    except RequestError as error:
        _warn(f"cl-report: {error}")
        return 2
    except BrokenPipeError:  # the reader has seen enough, e.g. `cl-report outputs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cl-report",
        description="Compares runs and sweeps. Runs that differ only in their seed share a row.",
        epilog="cl-report sync RUN... sends runs to Weights & Biases, cl-report export RUN --merged FILE writes "
        "trained weights; see their --help.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="*", type=Path, help="a run folder, or a folder of such folders")
    parser.add_argument("--format", choices=("table", *_TEXT, "html"), help="default: table; html needs --out")
    parser.add_argument(
        "--against", choices=("published",), help="set runs that follow a published protocol beside its figures"
    )
    parser.add_argument(
        "--plot",
        choices=(*COMPARISONS, *OF_RUNS),
        help="draw instead: accuracy against growth, stability against plasticity, retention of probe domains against "
        "adaptation, accuracy or loss against rank; or, of runs, the accuracy matrix, accuracy and forgetting over "
        "tasks, parameter growth, rank per layer, accuracy on probe domains, loss of texts",
    )
    parser.add_argument(
        "--columns",
        type=_names,
        default=[],
        metavar="NAME,...",
        help="metrics of a table, e.g. transfer,last,retention",
    )
    parser.add_argument("--sort", metavar="NAME", help="put the best by this metric first, e.g. retention")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write there instead of to the terminal")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _check(arguments: argparse.Namespace) -> None:
    """Refuses options that exclude each other, and metrics that there are not."""
    for name in [*arguments.columns, *([] if arguments.sort is None else [arguments.sort])]:
        known_metric(name)
    if arguments.columns and (arguments.plot or arguments.against or arguments.format not in (None, "table", "latex")):
        raise RequestError(
            "--columns is for --format table and latex", "csv, json and html hold every metric; --sort works with all"
        )
    if arguments.plot is None:
        if arguments.format == "html" and arguments.out is None:
            raise RequestError("--format html needs a file to write into", "for example --out report.html")
        return
    if arguments.against is not None:
        raise RequestError(
            f"--plot {arguments.plot} and --against {arguments.against} exclude each other",
            "ask for one after the other",
        )
    if arguments.format is not None:
        raise RequestError(
            f"--plot {arguments.plot} and --format {arguments.format} exclude each other", "ask for one after the other"
        )
    if arguments.out is None:
        raise RequestError(
            f"--plot {arguments.plot} needs a file to draw into", f"for example --out {arguments.plot}.png"
        )
    allowed = (*SUFFIXES, ".csv") if arguments.plot in NUMBERS else SUFFIXES
    if arguments.out.suffix.lower() not in allowed:
        raise RequestError(f"--out {arguments.out}: not a picture's name", f"end it with {', '.join(allowed)}")


def _collected(paths: Sequence[Path]) -> list[Group]:
    if not paths:
        raise RequestError("no PATH given", "name run folders or folders of them, e.g. cl-report outputs")
    for path in paths:
        if not path.is_dir():
            raise RequestError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
    runs, unreadable = find_runs(paths)
    groups, left_out = group_runs(runs)
    for problem in [*unreadable, *left_out]:
        _warn(f"cl-report: {problem}")
    if not groups:
        where = ", ".join(map(str, paths))
        raise RequestError(f"no finished run found under {where}", "a run folder holds a summary.json with status done")
    return groups


def _draw(name: str, groups: Sequence[Group], path: Path) -> None:
    if path.suffix.lower() == ".csv":
        _save_numbers(name, groups, path)
        return
    from cl_runner.reports import figures, run_figures  # they import matplotlib, which takes a second

    drawn = figures.PLOTS[name](groups, path) if name in COMPARISONS else run_figures.draw(name, groups, path)
    for problem in drawn:
        _warn(f"cl-report: {problem}")


def _save_numbers(name: str, groups: Sequence[Group], path: Path) -> None:
    rows = NUMBERS[name](groups)
    if not rows:
        raise RequestError(f"nothing to write: no run has an accuracy matrix for --plot {name}")
    try:
        path.write_text(csv_text(rows), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"--out: cannot write {path}: {(error.strerror or str(error)).lower()}") from error


def _write(groups: Sequence[Group], arguments: argparse.Namespace, stream: TextIO) -> None:
    form = arguments.format or "table"
    if arguments.against:
        found = against.compare(groups)
        for problem in [*([] if found else [_NOTHING_PUBLISHED]), *against.near_misses(groups, found)]:
            _warn(f"cl-report: {problem}")
    if form == "html":
        from cl_runner.reports.page import as_html  # imports the plotting library

        text, problems = as_html(groups, against_view.as_markup(groups) if arguments.against else "")
        for problem in problems:
            _warn(f"cl-report: {problem}")
        stream.write(text)
    elif arguments.against:
        against_view.show(groups, stream) if form == "table" else stream.write(against_view.TEXT[form](groups))
    elif form == "table":
        show(groups, stream, asked=arguments.columns)
    else:
        stream.write(as_latex(groups, arguments.columns) if form == "latex" else _TEXT[form](groups))
    stream.flush()


def _save(groups: Sequence[Group], arguments: argparse.Namespace) -> None:
    path = arguments.out
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            _write(groups, arguments, file)
    except OSError as error:
        raise RequestError(f"--out: cannot write {path}: {(error.strerror or str(error)).lower()}") from error


def _warn(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
