"""From a settled configuration to the parts of a run: device, network with its adapter, strategy."""

from __future__ import annotations

import os
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cl_runner.adapters.roles import tower_of
from cl_runner.backbones.clip import CLIPClassifier
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.config.checks import build, import_target
from cl_runner.errors import RequestError
from cl_runner.modalities import modality_of
from cl_runner.modalities.modality import Modality
from cl_runner.strategies.strategy import Strategy, Workshop
from cl_runner.training.optimizers import optimizer_factory


def choose_device(wanted: str) -> torch.device:
    """The compute device.

    Raises:
        RequestError: the one that was asked for is not there.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[wanted]:
        have = ", ".join(name for name, there in available.items() if there)
        raise RequestError(f"trainer.device={wanted}: this machine has no such device", f"available: auto, {have}")
    return torch.device(wanted)


def prepare_torch(config: DictConfig) -> None:
    """Seeds every generator and sets threads and determinism."""
    import random

    import numpy as np

    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    else:
        torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(bool(config.trainer.deterministic))


def notes(recipe: Strategy, network: TaskNetwork) -> list[str]:
    """What the user should know about this combination before it runs."""
    adapter = network.adapter
    found = list(adapter.warnings)
    sets = network.n_tasks - (getattr(adapter, "base", None) == "first_task")
    if not sets:
        found.append("the base learns the only task, and the adapter nothing; adapter.base=frozen trains the adapter")
    elif sets < adapter.acts_from_set:
        found.append(
            f"adapter={adapter.label} holds on to the set of the task before, and in {network.n_tasks} tasks with "
            f"adapter.base={adapter.base} there is none; adapter.base=frozen gives every task one"  # type: ignore[attr-defined]
        )
    if recipe.whole_stream and getattr(adapter, "base", None) == "first_task":
        found.append(
            "the base learns the whole stream at once, and the adapter nothing; adapter.base=frozen trains the adapter"
        )
    return found


def build_strategy(
    config: DictConfig, stream: TaskStream, network: TaskNetwork, modality: Modality | None = None
) -> tuple[Strategy, Workshop]:
    """The recipe of the strategy and what it is built from, checked against one another; no data and no Avalanche.

    Raises:
        RequestError: the strategy cannot work with the adapter, the head or the trainer.
    """
    trainer, modality = config.trainer, modality or modality_of(config)
    recipe: Strategy = build(config.strategy)
    if not isinstance(recipe, Strategy):
        raise RequestError(
            f"strategy._target_={config.strategy._target_} is no Strategy",
            "derive it from cl_runner.strategies.strategy.Strategy",
        )
    options: dict[str, Any] = OmegaConf.to_container(config.optimizer)  # type: ignore[assignment]
    optimizer = import_target(options.pop("_target_"), "optimizer")
    workshop = Workshop(
        network=network,
        n_tasks=len(stream),
        task_labels=stream.task_labels,
        optimizer_factory=optimizer_factory(optimizer, options),
        batch_size=trainer.batch_size,
        eval_batch_size=modality.eval_batch_size(stream, network),
        epochs=task_epochs(config, stream, recipe),
        iterations=trainer.iterations,
        channels_last=_channels_last(config, network, recipe),
        reset_optimizer=trainer.reset_optimizer,
        criterion=modality.criterion(network),
        cache_bytes=int(trainer.cache_gb * 2**30) if trainer.prefix_cache else 0,
    )
    network.mixes_tasks = recipe.mixes_tasks
    _check_schedule(network, recipe, workshop)
    _check_protection(network, recipe)
    if recipe.needs_classes and network.reads_text:
        raise RequestError(
            f"strategy={type(recipe).__name__.lower()} works on scores or features of classes, and a language model "
            "has none",
            "use strategy=naive, replay, ewc, si, lwf, gem, agem, wise_ft, cumulative or joint",
        )
    if not recipe.validates and (trainer.patience is not None or config.scheduler._target_.endswith("Plateau")):
        key = "trainer.patience" if trainer.patience is not None else "scheduler=plateau"
        raise RequestError(
            f"{key}: {type(recipe).__name__} has no classifier to validate while it trains",
            "leave trainer.patience empty and choose scheduler=constant, cosine or multistep",
        )
    if network.adapter.keeps_last and trainer.patience is not None:
        raise RequestError(
            f"trainer.patience={trainer.patience}: {type(network.adapter).__name__} must go on to the end of a task",
            "leave trainer.patience empty",
        )
    _check_open(network)
    _check_mixing(recipe, workshop)
    recipe.check(network.adapter, workshop)
    return recipe, workshop


def _channels_last(config: DictConfig, network: TaskNetwork, recipe: Strategy) -> bool:
    """The format of images and weights: with `auto` channels-last where convolutions are faster in it.

    That is on the CPU, where max-pooling is several times faster in it and a chain of convolutions by a third, while
    before two strided convolutions the change of format takes more than it saves; and on CUDA where half precision
    computes on tensor cores. A network of prompts has one convolution, and a vision transformer behind it.
    """
    trainer = config.trainer
    if trainer.channels_last != "auto":
        return bool(trainer.channels_last)
    if network.prompted or network.reads_text or recipe.flattens_gradients:
        return False
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in network.modules())
    pools = any(isinstance(module, torch.nn.MaxPool2d) for module in network.modules())
    if convolutions < (1 if pools else 3):
        return False
    kind = choose_device(trainer.device).type
    return kind == "cpu" or (kind == "cuda" and trainer.precision == "bfloat16")


def task_epochs(config: DictConfig, stream: TaskStream, recipe: Strategy) -> tuple[int, ...]:
    """Epochs of each phase of training; one where iterations are counted.

    Raises:
        RequestError: `trainer.task_epochs` has another length than the stream, or there is one phase.
    """
    trainer = config.trainer
    if trainer.task_epochs is None:
        return (1 if trainer.iterations is not None else int(trainer.epochs),) * len(stream)
    if recipe.whole_stream or len(trainer.task_epochs) != len(stream):
        tasks = "one phase for all tasks" if recipe.whole_stream else f"{len(stream)} tasks"
        raise RequestError(
            f"trainer.task_epochs={list(trainer.task_epochs)} has {len(trainer.task_epochs)} entries for {tasks}",
            "one number of epochs for each task, or trainer.epochs for all",
        )
    return tuple(trainer.task_epochs)


def _check_schedule(network: TaskNetwork, recipe: Strategy, workshop: Workshop) -> None:
    """Refuses a rank schedule that no task follows to its end: here, where the base and the phases are known."""
    adapter = network.adapter
    schedule = list(getattr(adapter, "rank_schedule", ()))
    if not schedule:
        return
    first = max(adapter.schedule_from, 1 + (adapter.base == "first_task"))
    phases = 1 if recipe.whole_stream else workshop.n_tasks
    if first > phases:
        phase = "one phase for all tasks" if recipe.whole_stream else f"{phases} task{'s' * (phases > 1)}"
        raise RequestError(
            f"adapter.rank_schedule={schedule} begins with task {first}, and there is {phase}"
            if phases == 1
            else f"adapter.rank_schedule={schedule} begins with task {first}, and there are {phase}",
            "a lower adapter.schedule_from (with adapter.base=frozen), or no schedule",
        )
    longest = max(workshop.epochs[first - 1 : phases])
    if len(schedule) > longest:
        raise RequestError(
            f"adapter.rank_schedule={schedule} has {len(schedule)} epochs, and no task from task {first} on more than "
            f"{longest}",
            "give as many ranks as epochs at most",
        )


def _check_protection(network: TaskNetwork, recipe: Strategy) -> None:
    """Refuses, for texts, what would protect nothing: there is no head that tasks share beside the adapter."""
    adapter, strategy = network.adapter, type(recipe).__name__.lower()
    if not network.reads_text or not recipe.protects:
        return
    if adapter.per_task:
        raise RequestError(
            f"strategy={strategy} with adapter={adapter.label}: every task has a set of its own, and nothing that an "
            "earlier one learned ever changes",
            "use strategy=naive, or adapter.sharing=shared",
        )
    if recipe.protects_weights and adapter.renews:
        raise RequestError(
            f"strategy={strategy} remembers values of weights, and adapter={adapter.label} trains new ones every task",
            "use strategy=naive, replay or lwf, or adapter=lora",
        )


def _check_open(network: TaskNetwork) -> None:
    """Refuses a network of which every tower that could learn is frozen."""
    backbone = network.backbone
    if not isinstance(backbone, CLIPClassifier) or not backbone.frozen or backbone.opened():
        return
    layers = network.adapter.adapted_layers()
    towers = {tower_of(name) for name in layers} if layers else {"vision", "text"}
    if towers <= set(backbone.frozen):
        where = f"the adapter is on {', '.join(sorted(towers))}" if layers else "without an adapter"
        raise RequestError(
            f"backbone.frozen={list(backbone.frozen)}: {where}, and nothing is left to train",
            "free a tower, place the adapter on it (placement.towers), or choose strategy=zero_shot",
        )


def _check_mixing(recipe: Strategy, workshop: Workshop) -> None:
    """Refuses several tasks in one batch where the forward pass depends on a task that no label tells."""
    network = workshop.network
    if network.per_task and not workshop.task_labels and (recipe.mixes_tasks or recipe.revisits or recipe.whole_stream):
        raise RequestError(
            f"benchmark.task_labels=false with adapter={network.adapter.label}: "
            f"{type(recipe).__name__} computes with several tasks at once, and without task labels nothing says which "
            "task's set a sample of the batch belongs to",
            "set benchmark.task_labels=true, or strategy=naive, ewc or si",
        )
