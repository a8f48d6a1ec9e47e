"""Fixtures of the tests that run sweeps, and of those that interrupt runs."""

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


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Runs that nobody interrupts, each request once a module."""
    from resume_helpers import Calm

    return Calm(tmp_path_factory)


@pytest.fixture
def hurried(monkeypatch):
    """Runs leave out what takes time and has no part in what they compute."""
    from resume_helpers import hurry

    hurry(monkeypatch)
