"""`mode=plan`: everything that can be known of a run without data, weights or training."""

from __future__ import annotations

import math
from typing import Any

import torch
from omegaconf import DictConfig

from cl_runner.adapters.adapter import Adapter
from cl_runner.assembly import build_strategy, notes
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.modalities import modality_of
from cl_runner.recording.console import Console
from cl_runner.recording.run_folder import RunFolder
from cl_runner.result import RunResult
from cl_runner.training.account import layer_rows, parameter_row, text_flops, trainable_parameters

BACKWARD_COST = 2  # a backward pass multiplies twice where the forward multiplies once


def plan(config: DictConfig, folder: RunFolder, console: Console) -> RunResult:
    """Builds the network without memory for its weights, lives through the tasks, and counts.

    Writes `parameters.csv` and `layers.csv`; prints tasks, the parameter table and the training FLOPs:
    (1 + 2) x forward FLOPs of one sample x samples trained on, every epoch counted. A tower of CLIP that stands still
    has no backward pass; where the text tower trains, the prompts of a task are encoded at every step.
    """
    modality = modality_of(config)
    _, stream = modality.open()
    with torch.device("meta"):
        network = modality.network(stream, load_weights=False)
        recipe, workshop = build_strategy(config, stream, network, modality)
        flops = modality.forward_flops(network, stream)
        order = [task.index for task in stream.tasks]
        phases = [order] if recipe.whole_stream else [[task] for task in order]
        parameters, layers = [], []
        learns, prompts = True, 0
        for tasks, epochs in zip(phases, workshop.epochs, strict=False):  # where all is one phase, it has the first
            network.begin_task(tasks)
            opened = trainable_parameters(network)
            if network.prompted:
                learns = network.moving[0]
                encoded = modality.encoded_prompts(stream, network, tasks)
                prompts += encoded * _steps(config, stream, tasks, epochs)
            if type(network.adapter).begin_epoch is not Adapter.begin_epoch:
                for epoch in range(epochs):
                    network.adapter.begin_epoch(epoch)  # a rank schedule drops parameters
            network.end_task()
            parameters.append(parameter_row(network, tasks[-1] + 1) | {"trainable": opened})
            layers += [row for task in tasks for row in layer_rows(network, task, with_norms=False)]
    folder.write_parameters(parameters)
    folder.write_layers(layers)
    images = _images(config, stream, phases, workshop.epochs, recipe.revisits) if recipe.descends else 0
    times = 1 + BACKWARD_COST * learns
    on_text = (1 + BACKWARD_COST) * prompts * text_flops(network) if recipe.descends and prompts else 0
    total = None if images is None or flops is None else flops * times * images + on_text
    summary = {
        "base_parameters": network.base_parameters,
        "parameter_growth": parameters[-1]["growth"],
        "unit": modality.unit,
        "forward_flops_per_image": flops,
        "training_images": images,
        "training_flops": total,
        "passes": times,
        "prompt_flops": on_text,
    }
    console.plan(_tasks(stream), parameters, layers, summary, notes(recipe, network), folder.path)
    return RunResult(folder.path, summary)


def _images(
    config: DictConfig, stream: TaskStream, phases: list[list[int]], epochs: tuple[int, ...], revisits: bool
) -> int | None:
    """New samples that pass through training in all, without a memory's; None where the data's size is not known."""
    trainer = config.trainer
    if trainer.iterations is not None:
        return int(trainer.iterations * trainer.batch_size * len(phases))
    counted = 0
    for phase, times in zip(phases, epochs, strict=False):
        tasks = range(phase[-1] + 1) if revisits else phase
        counted += times * sum(stream.tasks[task].n_train for task in tasks)
    return counted or None


def _steps(config: DictConfig, stream: TaskStream, tasks: list[int], epochs: int) -> int:
    """Optimiser steps of a phase."""
    trainer = config.trainer
    if trainer.iterations is not None:
        return int(trainer.iterations)
    return int(epochs * math.ceil(sum(stream.tasks[task].n_train for task in tasks) / trainer.batch_size))


def _tasks(stream: TaskStream) -> list[dict[str, Any]]:
    return [
        {
            "name": task.name if task.index < len(stream) else f"{task.name} (probe)",
            "classes": task.class_names,
            "n_classes": len(task.classes),
            "train": task.n_train if task.index < len(stream) else None,
            "test": task.n_test,
        }
        for task in stream.evaluated
    ]
