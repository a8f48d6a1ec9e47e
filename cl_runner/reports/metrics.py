"""Which figures of a summary the reports show: what each is called, its unit, and whether more of it is better."""

from __future__ import annotations

from dataclasses import dataclass

from cl_runner.errors import RequestError
from cl_runner.metrics.cost import NOT_APPLICABLE


@dataclass(frozen=True)
class Metric:
    """A figure of `summary.json`.

    Attributes:
        key: its key there.
        title: its heading.
        unit: share (in [0, 1], shown in %), points (a difference of shares), ratio (shown in %, with a sign), count,
            seconds, bytes, rate (images a second), factor (a quotient of accuracies), loss (nats a token), change (of a
            loss) or plain.
        better: +1 where more is better, -1 where less is, 0 where neither is.
        hint: what it is.
    """

    key: str
    title: str
    unit: str
    better: int
    hint: str


METRICS: dict[str, Metric] = {
    "acc": Metric("acc", "acc %", "share", 1, "mean accuracy (texts: score) over the tasks at the end"),
    "learning_accuracy": Metric("learning_accuracy", "learned %", "share", 1, "mean accuracy right after each task"),
    "bwt": Metric("bwt", "bwt", "points", 1, "backward transfer: at the end minus right after each task, points"),
    "fwt": Metric("fwt", "fwt", "points", 1, "forward transfer: just before a task minus before any training, points"),
    "forgetting": Metric(
        "forgetting", "forgetting", "share", -1, "best earlier accuracy minus that at the end, points"
    ),
    "transfer": Metric("transfer", "transfer %", "share", 1, "mean accuracy on tasks not learned yet"),
    "average": Metric("average", "average %", "share", 1, "mean accuracy over all tasks and times"),
    "last": Metric("last", "last %", "share", 1, "mean accuracy over the tasks at the end"),
    "growth": Metric("parameter_growth", "growth %", "ratio", -1, "stored parameters / base parameters - 1"),
    "trainable": Metric("trainable_parameters", "trainable", "count", -1, "parameters that train in the last task"),
    "stored": Metric("stored_parameters", "stored", "count", -1, "parameters to keep after the last task"),
    "drift": Metric("drift", "drift", "plain", 0, "distance of the adapted weights from where they began"),
    "retention": Metric(
        "retention",
        "retention",
        "factor",
        1,
        "at the end / before: accuracy on probes, score of earlier texts",
    ),
    "loss": Metric("loss", "loss", "loss", -1, "texts: mean loss over the tasks at the end, nats a token"),
    "delta_loss": Metric(
        "delta_loss", "delta loss", "change", -1, "texts: loss on earlier tasks, at the end minus right after each"
    ),
    "last_task_loss": Metric(
        "last_task_loss", "last task loss", "loss", -1, "texts: loss on the last task at the end, nats a token"
    ),
    "adapter_parameters": Metric(
        "adapter_parameters", "adapter size", "count", -1, "parameters of the adapters after the last task"
    ),
    "task_inference": Metric(
        "task_inference_accuracy", "tasks found %", "share", 1, "samples whose task was recognised without a label"
    ),
    "seconds": Metric("wall_seconds", "seconds", "seconds", -1, "wall time of the run"),
    "images_per_second": Metric(
        "train_images_per_second", "images/s", "rate", 1, "training throughput; texts: sequences a second"
    ),
    "memory": Metric("peak_memory_bytes", "memory", "bytes", -1, "peak memory: of the GPU, else of the process"),
}
_SCALES = ((1e9, " G"), (1e6, " M"), (1e3, " k"))


def known_metric(name: str) -> Metric:
    """Returns a metric by its name.

    Raises:
        RequestError: there is none of that name.
    """
    if name not in METRICS:
        raise RequestError(f"there is no metric '{name}'", f"one of: {', '.join(METRICS)}")
    return METRICS[name]


def shown_metric(name: str, value: float | None) -> str:
    """Returns a value of `METRICS` as a reader wants it."""
    if value is None:
        return NOT_APPLICABLE
    unit = METRICS[name].unit
    if unit in ("share", "points", "ratio"):
        return f"{100 * value:{'' if unit == 'share' else '+'}.2f}"
    if unit == "count":
        return _scaled(value)
    if unit in ("factor", "loss", "change"):
        return f"{value:{'+' if unit == 'change' else ''}.4f}"
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB"
    if unit == "seconds":
        return f"{value:.{1 if value < 100 else 0}f}"
    return f"{value:.0f}" if unit == "rate" else f"{value:.4g}"


def shown_spread(name: str, value: float | None) -> str:
    """Returns a standard deviation in the same unit, without a sign; "" for one seed."""
    return "" if value is None else shown_metric(name, value).lstrip("+")


def _scaled(value: float) -> str:
    for size, letter in _SCALES:
        if value >= size:
            return f"{value / size:.2f}{letter}"
    return f"{value:.0f}"
