"""Libraries that only some requests need, imported when one does: what the extras of pyproject.toml install."""

from __future__ import annotations

import importlib
from typing import Any

from cl_runner.errors import RequestError, shown


class MissingLibrary(RequestError, ImportError):
    """A library of an extra cannot be imported; an ImportError as well, for those who have another way."""


def library(module: str, wanted_by: str, extra: str, package: str | None = None) -> Any:
    """Returns a module of a library that is not always installed.

    Args:
        module: what to import, such as ``rapidfuzz.fuzz``.
        wanted_by: the choice that needs it, as it is typed.
        extra: of this package, which installs it.
        package: its name where it is installed from; None: that of the module.

    Raises:
        MissingLibrary: it cannot be imported; the message says why, the hint how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibrary(
            f"{wanted_by} needs the package {package or module.partition('.')[0]} ({shown(error, 150)})",
            f"pip install 'cl-runner[{extra}]'",
        ) from error
