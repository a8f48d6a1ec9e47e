"""Training steps recorded once on a GPU and repeated: a launch a step, instead of one for every operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from cl_runner.backbones.prefix import Features
from cl_runner.training.guard import SKIP
from cl_runner.training.step import Step, why_not_lean

WARM = 3  # steps in the ordinary way before one of a shape is recorded: libraries choose their algorithms in them
MOST_GRAPHS = 4  # shapes of batches that are recorded in a task; any further one is computed in the ordinary way
KINDS = (SGD, Adam, AdamW)  # which take the learning rate from a tensor

Work = Callable[[], None]


class Graph(Protocol):
    """Something that records what a function does to tensors, and does it again."""

    def warm(self, work: Work) -> None:
        """Runs the function as it will be recorded, and records nothing."""

    def record(self, work: Work) -> None:
        """Runs the function once, and records it."""

    def repeat(self) -> None:
        """Does the same once more, with what the tensors that it reads hold by now."""


class CudaGraph:
    """A CUDA graph.

    Args:
        pool: of memory, shared with the graphs that are repeated in turn with this one.
    """

    def __init__(self, pool: Any = None) -> None:
        self._pool, self._graph = pool, torch.cuda.CUDAGraph()

    def warm(self, work: Work) -> None:
        """Runs the function on a stream of its own, as recording does."""
        side, present = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(present)
        with torch.cuda.stream(side):
            work()
        present.wait_stream(side)

    def record(self, work: Work) -> None:
        """Records, which computes nothing, and repeats."""
        with torch.cuda.graph(self._graph, pool=self._pool):
            work()
        self.repeat()

    def repeat(self) -> None:
        """Launches the graph."""
        self._graph.replay()


@dataclass
class Recorded:
    """A recorded step: where its batch is put, and where it leaves its answer."""

    graph: Graph
    images: Tensor
    labels: Tensor
    tasks: Tensor
    rates: list[Tensor]
    rates_now: list[float]
    output: Any = None
    loss: Any = None


class CapturedStep(Step):
    """The whole step as one recorded graph: forward pass, loss, adapter's penalty, backward pass, optimiser.

    Within an epoch of a lean step (`why_not_lean`) nothing changes but the batch, the weights and the learning rate:
    these three are read from tensors, and everything else is the same operations over the same memory. What adapters do
    before and after a step stays outside. A graph lasts as long as the task's parameters do.

    Where a step cannot be recorded it is computed in the ordinary way, and the reason is told once a run.

    Args:
        tell: is told why steps are not recorded.
        graph: makes graphs that share memory.

    Attributes:
        recorded, repeated: steps so far.
    """

    def __init__(self, tell: Callable[[str], None], graph: Callable[[], Graph] | None = None) -> None:
        self._tell, self._told = tell, False
        self._make = graph or _cuda_graphs()
        self._graphs: dict[Any, Recorded] = {}
        self._seen: dict[Any, int] = {}
        self._memory: Any = None
        self._reason: str | None = None
        self.recorded = self.repeated = 0

    def begin_epoch(self, strategy: Any) -> None:
        """Lets go of what was recorded where the parameters are other ones by now."""
        memory = [id(strategy.optimizer), strategy.model.learning]
        memory += [(item.data_ptr(), item.requires_grad) for item in strategy.model.parameters()]
        if memory != self._memory or strategy.model.prompted:  # embeddings of prompts are kept outside the graph
            self._graphs, self._seen, self._memory = {}, {}, memory
        self._reason = why_not_recorded(strategy)
        if self._reason is not None:
            self._give_up(self._reason)

    def learn(self, strategy: Any) -> bool:
        """Repeats the step on the strategy's batch, or records it, or computes it in the ordinary way."""
        images, labels, tasks = strategy.mbatch[0], strategy.mbatch[1], strategy.mbatch[-1]
        if self._reason is not None or (strategy.model.task_labels and tasks.stride() != (0,)):
            return super().learn(strategy)
        cut = getattr(images, "cut", None)  # of features, which come in the place of images
        key = (cut, images.shape, images.dtype, labels.shape, strategy.model.training, int(tasks[0]))
        found = self._graphs.get(key)
        if found is not None:
            self._repeat(strategy, found)
        elif self._seen.get(key, 0) < WARM or len(self._graphs) >= MOST_GRAPHS:
            self._seen[key] = self._seen.get(key, 0) + 1
            learned = [True]
            self._make().warm(lambda: learned.__setitem__(0, super(CapturedStep, self).learn(strategy)))
            return learned[0]
        else:
            try:
                self._record(strategy, key, images, labels, tasks)
            except Exception as error:
                self._reason = f"recording failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                self._give_up(self._reason)
                return super().learn(strategy)
        strategy.guard.accepts(strategy)
        strategy.events.fire("after_update")
        return True

    def _record(self, strategy: Any, key: Any, images: Tensor, labels: Tensor, tasks: Tensor) -> None:
        groups = strategy.optimizer.param_groups
        rates = [torch.tensor(float(group["lr"]), device=images.device) for group in groups]
        kept = Recorded(
            self._make(),
            _own(images),
            labels.clone(),
            tasks,
            rates,
            [float(group["lr"]) for group in groups],
        )
        batch, plain = strategy.mbatch, [(group, group["lr"], group.get("capturable")) for group in groups]
        try:
            strategy.mbatch = [kept.images, kept.labels, tasks]
            for (group, _, capturable), rate in zip(plain, rates, strict=True):
                group["lr"] = rate
                if capturable is not None:
                    group["capturable"] = True
            kept.graph.record(lambda: _compute(strategy))
        finally:
            strategy.mbatch = batch
            for group, rate, capturable in plain:
                group["lr"] = rate
                if capturable is not None:
                    group["capturable"] = capturable
        kept.output, kept.loss = strategy.mb_output, strategy.loss.detach()
        strategy.loss = kept.loss.clone()
        self._graphs[key] = kept
        self.recorded += 1
        strategy.timer.mark("recorded step")

    def _repeat(self, strategy: Any, found: Recorded) -> None:
        found.images.copy_(strategy.mbatch[0], non_blocking=True)
        found.labels.copy_(strategy.mbatch[1], non_blocking=True)
        for place, group in enumerate(strategy.optimizer.param_groups):
            if group["lr"] != found.rates_now[place]:
                found.rates_now[place] = group["lr"]
                found.rates[place].fill_(group["lr"])
        found.graph.repeat()
        strategy.mb_output, strategy.loss = found.output, found.loss.clone()
        self.repeated += 1
        strategy.timer.mark("recorded step")

    def _give_up(self, reason: str) -> None:
        if not self._told:
            self._tell(f"steps are not recorded as a graph: {reason}")
            self._told = True


def step_for(wanted: bool | str, device: torch.device, tell: Callable[[str], None]) -> Step:
    """How the steps of a run are made.

    Args:
        wanted: true or auto: recorded, on a CUDA device; false: never.
        device: where the run computes.
        tell: is told why steps are not recorded.
    """
    if device.type == "cuda" and wanted:
        return CapturedStep(tell)
    if wanted is True:
        tell(f"trainer.compile=true: steps are recorded as CUDA graphs, and on {device.type} they run as they are")
    return Step()


def why_not_recorded(strategy: Any) -> str | None:
    """Why the steps of this epoch cannot be recorded; None where they can."""
    network, optimizer = strategy.model, strategy.optimizer
    if network.reads_text:
        return "the number of answers differs from batch to batch"
    if strategy.guard.on_nan == SKIP:
        return "on_nan=skip looks at every loss before anything learns from it"
    if not network.adapter.steady:
        return f"adapter={network.adapter.label} computes something else at every step"
    if type(optimizer) not in KINDS or not optimizer.defaults.get("fused"):
        return f"{type(optimizer).__name__} does not take its learning rate from the device"
    return why_not_lean(strategy)


def _compute(strategy: Any) -> None:
    """What is recorded: a step without anything that looks at it."""
    for group in strategy.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    strategy.mb_output = strategy.forward()
    strategy.loss = strategy.criterion()
    strategy.events.fire("before_backward")
    strategy.backward()
    strategy.optimizer_step()


def _own(images: Tensor) -> Tensor:
    """A batch of its own, with the mark of features where it is one of them."""
    if isinstance(images, Features):
        return Features.of(images.plain().clone(memory_format=torch.preserve_format), images.cut)
    return images.clone(memory_format=torch.preserve_format)


def _cuda_graphs() -> Callable[[], Graph]:
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(pool)
