"""Small networks that several test files build on: three tasks of two classes, images of 3x8x8."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.adapters import ConvLoRA, NoAdapter, Placement
from cl_runner.backbones.network import Network

torch.set_num_threads(1)  # the same sums in the same order, and no fight over cores

TASK_CLASSES = [[0, 1], [2, 3], [4, 5]]
N_CLASSES = 6


def backbone() -> nn.Module:
    """A convolution, a grouped one, a hidden linear layer and a classifier; BatchNorm after each convolution."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 3, padding=1),
            norm1=nn.BatchNorm2d(6),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(6, 8, 3, stride=2, groups=2, bias=False),
            norm2=nn.BatchNorm2d(8),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(32, 10),
            relu3=nn.ReLU(),
            classifier=nn.Linear(10, N_CLASSES),
        )
    )


def network(
    *,
    adapter: str = "convlora",
    placement: Placement | str = "all",
    seed: int = 0,
    head: str = "per_task",
    own_classes: bool = False,
    task_labels: bool = True,
    precision: str = "float32",
    task_inference: str | None = None,
    **options: Any,
) -> Network:
    """The backbone above as a `Network`, with ConvLoRA of rank 2 or no adapter."""
    torch.manual_seed(seed)
    net = Network(
        backbone(),
        "classifier",
        task_classes=TASK_CLASSES,
        task_labels=task_labels,
        head=head,
        own_classes=own_classes,
        precision=precision,
        task_inference=task_inference,
    )
    net.adapter = ConvLoRA(**{"rank": 2, "base": "frozen"} | options) if adapter == "convlora" else NoAdapter()
    net.adapter.attach(net, placement)
    return net


def learned(**options: Any) -> Network:
    """A network whose every task has factors, normalisation and head of its own, all different, in eval mode."""
    net = network(**options)
    generator = torch.Generator().manual_seed(1)
    for task in range(len(TASK_CLASSES)):
        net.begin_task([task])
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        train(net, task, steps=2, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05))
        net.end_task()
    net.zero_grad()
    return net.eval()


def images(n: int = 5, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Random images (n, 3, 8, 8)."""
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + shift


def train(net: Network, task: int, *, steps: int, optimizer: Any) -> None:
    """A plain loop over all parameters of the network, closed ones too, on data of the task's own distribution."""
    net.train()
    optimise = optimizer(list(net.parameters())) if callable(optimizer) else optimizer
    generator = torch.Generator().manual_seed(100 + task)
    for step in range(steps):
        x = images(6, seed=1000 * task + step, shift=float(task))
        y = torch.randint(2, (6,), generator=generator) + 2 * task
        optimise.zero_grad()
        nn.functional.cross_entropy(net(x, task), y).backward()
        optimise.step()


def open_parameters(net: nn.Module) -> set[str]:
    """Names of what trains, without the backbone's prefix."""
    return {name.removeprefix("backbone.") for name, item in net.named_parameters() if item.requires_grad}
