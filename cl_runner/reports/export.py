"""``cl-report export RUN --merged FILE``: the trained weights of a run as one file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cl_runner.errors import RequestError


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 0, or 2 where the request cannot be met."""
    parser = argparse.ArgumentParser(
        prog="cl-report export",
        description="Writes the trained weights of a run, the adapter merged into them, as safetensors, under the "
        "names of the backbone's own library; backbone.pretrained=FILE starts from them. Needs no data.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, finished or interrupted")
    parser.add_argument("--merged", metavar="FILE", type=Path, required=True, help="ends in .safetensors")
    parser.add_argument("--task", type=int, help="whose weights, from 1; needed where every task has its own")
    parser.add_argument(
        "--config-dir", type=Path, metavar="FOLDER", help="where classes of your own are, as for cl-run"
    )
    arguments = parser.parse_args(argv)
    if arguments.config_dir is not None:
        sys.path[:0] = [str(arguments.config_dir.resolve()), str(arguments.config_dir.resolve().parent)]
    try:
        from cl_runner.revisit import export_merged  # imports torch

        place = export_merged(arguments.run, arguments.merged, arguments.task)
    except RequestError as error:
        sys.stderr.write(error.text.replace("cl-run:", "cl-report export:", 1))
        return 2
    sys.stdout.write(f"{place}\n")
    return 0
