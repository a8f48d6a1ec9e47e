"""Keys that have no use where nothing is evaluated, where it is once, or where nothing but that is done."""

from __future__ import annotations

from omegaconf import DictConfig

Idle = tuple[str, bool, str, str]
WATCHED = ("trainer.profile", "trainer.trace_steps")  # what looks at training from outside


def of_evaluation(config: DictConfig) -> list[Idle]:
    """Keys of evaluation where there is none, or one."""
    return [
        ("evaluate_unchanged", config.mode == "plan", "mode=plan evaluates nothing", "drop it"),
        (
            "evaluate_unchanged",
            config.evaluate == "last",
            "evaluate=last evaluates once, and nothing can be carried over",
            "use evaluate=seen or full, or drop it",
        ),
    ]


def idle_in_evaluation() -> list[Idle]:
    """Keys of training that mode=eval leaves aside; all others are held against the run that is evaluated."""
    keys = ("trainer.checkpoint_epochs", "trainer.checkpoint_minutes", "trainer.log_every", *WATCHED, "on_nan")
    trains = [(key, True, "mode=eval trains nothing", "drop it") for key in keys]
    trains.append(("evaluate_unchanged", True, "mode=eval evaluates once, and nothing can be carried over", "drop it"))
    writes = "cl-report export RUN --merged FILE writes the weights of a run"
    return trains + [(key, True, "mode=eval writes no weights", writes) for key in ("export", "export_adapter")]
