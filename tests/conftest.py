"""Fixtures of the tests that run sweeps."""

from __future__ import annotations

import logging
import sys

import pytest


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CL_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    for logger in logging.root.manager.loggerDict.values():  # Hydra's configuration of logging disables all there are
        logger.disabled = False


@pytest.fixture
def learned(monkeypatch):
    """The configurations of all runs that train from now on."""
    from cl_runner import learning

    seen = []
    learn = learning.learn

    def watch(config, *args, **options):
        seen.append(config)
        return learn(config, *args, **options)

    monkeypatch.setattr(learning, "learn", watch)
    return seen
