"""``cl-data``: what each dataset needs, where it goes, whether what is there is whole.

Exit codes: 0 done or ready; 2 missing or damaged data, or an unknown name, said in two lines on stderr;
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table

from cl_runner.benchmarks.domains.source import FILE_DOMAINS, DomainSource
from cl_runner.benchmarks.sources import Cifar10, Cifar100, Cub200, Digits, ImageFolder, Mnist
from cl_runner.benchmarks.sources.dataset import Dataset, MissingData, Progress
from cl_runner.benchmarks.text.sources import ImdbYelpSource, TraceSource
from cl_runner.errors import RequestError, nearest

NAMES = ("digits", "mnist", "cifar10", "cifar100", "cub200", "folder", *FILE_DOMAINS, "imdb_yelp", "trace")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    options = _parser().parse_args(argv)
    wide = None if sys.stdout.isatty() else 160
    console, errors = Console(width=wide), Console(stderr=True)
    try:
        if options.command == "list":
            console.print(_table(list(_sources(options.data_root).values())))
            _say(console, f"data_root is {options.data_root}; `cl-data check NAME` verifies what was found there")
            return 0
        source = _source(options.name, options.data_root, getattr(options, "split", None))
        with _progress(errors) as progress:
            if options.command == "prepare":
                source.prepare(say=lambda line: _say(console, line), progress=progress)
            else:
                _say(console, source.verify(progress))
        return 0
    except RequestError as error:
        _say(errors, str(error))
        return 2
    except KeyboardInterrupt:
        _say(errors, "interrupted; what was downloaded so far is kept and continued next time")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cl-data", description="Datasets: what each needs, and whether it is whole.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | prepare NAME | check NAME")
    default = Path(os.environ.get("CL_DATA_ROOT") or "~/.cache/cl-runner")
    for command, purpose in (
        ("list", "every dataset with its size, licence, origin and state"),
        ("prepare", "download, unpack and verify a dataset where its origin still serves it"),
        ("check", "read every file of a dataset and say what is wrong"),
    ):
        sub = commands.add_parser(command, help=purpose, description=purpose)
        if command != "list":
            sub.add_argument("name", metavar="NAME", help=f"one of {', '.join(NAMES)}")
        if command == "check":
            split_help = "a split file in CoOp's format, for one of MTIL's domains of image files"
            sub.add_argument("--split", type=Path, metavar="FILE", help=split_help)
        root_help = "where data lies (default: $CL_DATA_ROOT, else ~/.cache/cl-runner); for folder, the tree itself"
        sub.add_argument("--data-root", type=Path, default=default, metavar="DIR", help=root_help)
    return parser


def _sources(root: Path) -> dict[str, Dataset]:
    root = root.expanduser()
    sources: list[Dataset] = [
        Digits(),
        Mnist(root=root),
        Cifar10(root=root),
        Cifar100(root=root),
        Cub200(root=root),
        ImageFolder(root=root),
        *(DomainSource(name, root=root) for name in FILE_DOMAINS),
        ImdbYelpSource(root=root),
        TraceSource(root=root),
    ]
    return {source.name: source for source in sources}


def _source(name: str, root: Path, split: Path | None) -> Dataset:
    """Returns the dataset of that name; benchmark names such as split_mnist do as well."""
    sources = _sources(root)
    source = sources.get(name.removeprefix("split_"))
    if source is None:
        raise RequestError(f"cl-data: there is no dataset '{name}'", nearest(name, list(sources), limit=len(sources)))
    if split is None:
        return source
    if not isinstance(source, DomainSource):
        raise RequestError(f"--split: {source.name} takes no split file", f"one of: {', '.join(FILE_DOMAINS)}")
    return DomainSource(source.name, root=root, split=split)


def _table(sources: Sequence[Dataset]) -> Table:
    table = Table()
    for title in ("name", "classes", "samples", "size", "licence", "origin", "state"):
        table.add_column(title, overflow="fold")
    for source in sources:
        state = _state(source) if source.key == "data_root" else f"where {source.key} says"
        table.add_row(source.name, *source.amount(), source.size, source.licence, source.origin, state)
    return table


def _state(source: Dataset) -> str:
    """Says at once whether there is anything; a listing that read gigabytes would be slow."""
    try:
        return f"found {source.find()}" if source.needs else "ready"
    except MissingData:
        return f"missing {source.needs}"


def _say(console: Console, line: str) -> None:
    """Prints a line as it is: paths hold brackets and colons that rich would read as markup."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(console: Console) -> Iterator[Progress | None]:
    """Gives a callback that draws one bar on a terminal, and None elsewhere."""
    if not console.is_terminal:
        yield None
        return
    with Bars(console=console, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
