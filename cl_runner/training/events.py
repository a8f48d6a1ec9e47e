"""Avalanche's events, fired at those plugins alone that do something at them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.training.plugins import EvaluationPlugin

from cl_runner.training.meter import NoMetrics

NO_PLUGIN_ACTS = "avalanche.core"  # where the empty methods of all plugins are defined
TRIGGERS = "avalanche.training.templates"  # where a strategy's methods do nothing but trigger the plugins

STEP_EVENTS = (
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
)
EVALUATION_EVENTS = (
    "before_eval",
    "before_eval_dataset_adaptation",
    "after_eval_dataset_adaptation",
    "before_eval_exp",
    "before_eval_iteration",
    "before_eval_forward",
    "after_eval_forward",
    "after_eval_iteration",
    "after_eval_exp",
    "after_eval",
)

Call = Callable[..., Any]


class Events:
    """Who acts at which event.

    Avalanche calls every plugin at every event, and most of these methods are empty: eight events a step and ten
    plugins are what a step of a small network takes. Here an event calls the methods that somebody wrote, in the order
    of the plugins. A strategy that overrides the event itself (DER's `_before_forward`) is asked, as Avalanche does.

    The table is read from the strategy when `refresh` is called, which the loops do before they begin.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._calls: dict[str, tuple[Call, ...]] = {}

    def refresh(self) -> None:
        """Reads who acts from the strategy and its plugins as they are now."""
        self._calls = {name: tuple(self._find(name)) for name in (*STEP_EVENTS, *EVALUATION_EVENTS)}

    def fire(self, name: str, **kwargs: Any) -> None:
        """Calls everyone who acts at an event."""
        for call in self._calls[name]:
            call(self._strategy, **kwargs)

    def acting(self, name: str) -> list[Any]:
        """The plugins that act at an event, and the strategy itself where it overrides it."""
        return [getattr(call, "__self__", None) for call in self._calls[name]]

    def _find(self, name: str) -> list[Call]:
        own = getattr(type(self._strategy), f"_{name}")
        if not own.__module__.startswith(TRIGGERS):
            return [own]  # it triggers the plugins by itself, or means not to
        return [getattr(plugin, name) for plugin in self._strategy.plugins if acts(plugin, name)]


def acts(plugin: Any, name: str) -> bool:
    """Whether a plugin has a method of its own for an event."""
    if isinstance(plugin, EvaluationPlugin):
        return not isinstance(plugin, NoMetrics) and bool(plugin.metrics or plugin.loggers)
    method = getattr(type(plugin), name, None) or getattr(plugin, name, None)
    return method is not None and getattr(method, "__module__", None) != NO_PLUGIN_ACTS
