"""What a run says of itself before it begins: its header, its labels, and the machine that it is on."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.modalities.modality import Modality
from cl_runner.recording.environment import describe
from cl_runner.recording.recorder import Recorder
from cl_runner.recording.run_folder import RunFolder


def announce(
    config: DictConfig,
    folder: RunFolder,
    recorder: Recorder,
    experiment: str,
    stream: TaskStream,
    network: TaskNetwork,
    device: torch.device,
    modality: Modality,
) -> None:
    """Records what is about to run, on what."""
    names = [task.name for task in stream.tasks]
    labels = _labels(config, stream, network, experiment)
    environment = describe(str(device), _seeds(config), list(stream.class_order), bool(config.trainer.deterministic))
    folder.write_environment(environment | {"class_names": {task.name: task.class_names for task in stream.tasks}})
    probes = [task.name for task in stream.probes]
    header = _header(config, labels, network, device, stream, modality)
    words = {"unit": modality.unit, "measure": modality.measure(stream)}
    recorder.run_started(header, names, labels, probes=probes, **words)


def _seeds(config: DictConfig) -> dict[str, int | None]:
    benchmark = config.benchmark
    return {
        "seed": config.seed,
        "class_order_seed": benchmark.get("class_order_seed"),
        "split_seed": benchmark.get("split_seed"),
    }


def _labels(config: DictConfig, stream: TaskStream, network: TaskNetwork, experiment: str) -> dict[str, Any]:
    def named(group: str) -> str:
        return str(config[group]._target_).rpartition(".")[2].lower()

    return {
        "experiment": experiment,
        "benchmark": stream.name,
        "backbone": config.backbone.get("name") or named("backbone"),
        "adapter": network.adapter.label,
        "strategy": named("strategy"),
        "seed": config.seed,
    }


def _header(
    config: DictConfig,
    labels: dict[str, Any],
    network: TaskNetwork,
    device: torch.device,
    stream: TaskStream,
    modality: Modality,
) -> dict[str, str]:
    trainer = config.trainer
    about = modality.describe(stream, network)
    epochs = trainer.epochs if trainer.task_epochs is None else ",".join(map(str, trainer.task_epochs))
    length = f"{trainer.iterations} iterations" if trainer.iterations else f"{epochs} epochs"
    layers = network.adapter.adapted_layers()
    rank = config.adapter.get("rank")
    size = f"rank {rank} on" if rank is not None else "own weights for"
    adapter = labels["adapter"] + (f", {size} {len(layers)} layer{'s' * (len(layers) != 1)}" if layers else "")
    optimizer = str(config.optimizer._target_).rpartition(".")[2]
    return {
        "experiment": str(labels["experiment"]),
        "benchmark": f"{labels['benchmark']}: {about['benchmark']}",
        "backbone": f"{labels['backbone']}, {about['backbone']}",
        "adapter": adapter,
        "strategy": str(labels["strategy"]),
        "training": f"{length} a task, batch {trainer.batch_size}, {optimizer} lr {config.optimizer.get('lr')}",
        "device": f"{device}, {trainer.precision}, {torch.get_num_threads()} threads",
        "seed": str(config.seed),
    }
