"""The figure that a sweeper optimises."""

from __future__ import annotations

from cl_runner.errors import RequestError, nearest, shown

OBJECTIVES = (
    "acc", "learning_accuracy", "bwt", "fwt", "forgetting", "transfer", "average", "last",
    "parameter_growth", "base_parameters", "trainable_parameters", "stored_parameters", "inference_parameters",
    "wall_seconds", "train_images_per_second", "peak_memory_bytes",
    "retention", "loss", "drift", "task_inference_accuracy",
    "delta_loss", "last_task_loss", "adapter_parameters",
)  # fmt: skip


def check_objective(objective: str | None) -> None:
    """Refuses what is no figure of `summary.json`.

    Raises:
        RequestError: names the nearest one.
    """
    if objective is not None and objective not in OBJECTIVES:
        raise RequestError(
            f"objective={shown(objective)}: summary.json has no such figure", nearest(objective, OBJECTIVES, limit=30)
        )
