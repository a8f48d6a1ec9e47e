"""The parameter account: what a network stores, trains and needs to answer, task by task."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.backbones.clip import CLIPClassifier
from cl_runner.backbones.language import LanguageNetwork
from cl_runner.backbones.language_weights import without_values
from cl_runner.backbones.routing import TaskNetwork


def parameter_row(network: TaskNetwork, tasks_seen: int) -> dict[str, Any]:
    """One row of `parameters.csv`; what is stored is told once a task has ended, what trains while it is open.

    stored = base + adapter + normalisation + head, all sets of the tasks seen; growth = stored / base - 1.
    base is the backbone without its original classifier. inference is what one sample needs once the deltas of its
    task are merged: the base and one head. buffers are running statistics of BatchNorm copies and, where there are any,
    the class means by which tasks are told apart; neither is in stored.
    """
    report = network.adapter.parameter_report()
    heads = network.head_parameters(tasks_seen)
    base = network.base_parameters
    prototypes = network.inference.stored_numbers(network.known_tasks()) if network.inference is not None else 0
    extra = sum(item.numel() for item in (*network.extra.parameters(), *network.extra.buffers()))
    heads[-1] += extra
    stored = base + report.adapter + report.normalisation + sum(heads)
    return {
        "task": tasks_seen,
        "base": base,
        "trainable": trainable_parameters(network),
        "adapter": report.adapter,
        "normalisation": report.normalisation,
        "head": sum(heads),
        "stored": stored,
        "inference": base + heads[-1],
        "growth": stored / base - 1,
        "buffers": report.buffers + prototypes,
    }


def trainable_parameters(network: TaskNetwork) -> int:
    """Parameters that train now, to be counted while the task is open."""
    return sum(item.numel() for item in network.parameters() if item.requires_grad)


def layer_rows(network: TaskNetwork, task: int, *, with_norms: bool = True) -> list[dict[str, Any]]:
    """The rows of `layers.csv` for one task, with ||DeltaW||_F where there is a weight to measure."""
    adapter = network.adapter
    rows = []
    if with_norms:
        network.activate(task)
    for report in adapter.layer_report(task):
        norm = report.delta_norm
        if norm is None and with_norms and report.kind != "full":
            norm = float(adapter.delta_weight(report.name).detach().norm())
        rows.append(
            {
                "task": task + 1,
                "name": report.name,
                "kind": report.kind,
                "shape": report.shape,
                "rank": report.rank,
                "parameters": report.parameters,
                "delta_norm": norm,
            }
        )
    return rows


SCANS = ("A_log", "time_decay", "recurrent_param")  # parameters of recurrences (Mamba and its kin, RWKV, RG-LRU)


def forward_flops(network: nn.Module, x: Tensor) -> int | None:
    """Floating-point operations of a forward pass, a multiplication and an addition counted apart.

    Those of matrix products, attention and convolutions are counted, and those of experts, each token through the ones
    that it is sent to.

    Args:
        network: on any device; on the meta device nothing is computed.
        x: what it takes; only its shape and type matter.

    Returns:
        The operations; None where they are not known: a recurrence runs number by number, in no operation that could
        be counted, and some networks look at values, which the meta device does not have.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if any(name.rpartition(".")[2] in SCANS for name, _ in network.named_parameters()):
        return None
    device = next(network.parameters()).device
    imagined = isinstance(network, LanguageNetwork) and device.type == "meta"
    if isinstance(network, LanguageNetwork) and not imagined:
        network.settle(x.to(device))
    training = network.training
    network.eval()
    counter = FlopCounterMode(display=False, custom_mapping=_of_experts())
    try:
        with torch.no_grad(), without_values() if imagined else nullcontext(), counter:
            network(x.to(device))
    except Exception:  # whatever is in the way, a plan has more to tell than this
        if not imagined:
            raise
        return None
    finally:
        network.train(training)
    return int(counter.get_total_flops())


def _of_experts() -> dict[Any, Any]:
    """Formulas for products of rows with a matrix of their own group, which torch's counter does not know."""
    found = {}
    for library, name in (("aten", "_grouped_mm"), ("transformers", "grouped_mm_fallback")):
        with suppress(AttributeError):  # of another version, or nothing has loaded it
            found[getattr(getattr(torch.ops, library), name)] = _grouped_product
    return found


def _grouped_product(rows: Any, matrices: Any, *args: Any, **options: Any) -> int:
    """(N, k) rows, each with one of the (E, k, n) matrices."""
    return int(2 * rows[0] * rows[1] * matrices[-1])


PROMPT_TOKENS = 16  # of a prompt whose words a plan does not know


def text_flops(network: TaskNetwork) -> int:
    """Floating-point operations of encoding one prompt of 16 tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    backbone = network.backbone
    assert isinstance(backbone, CLIPClassifier)
    device = next(backbone.parameters()).device
    length = backbone.context(PROMPT_TOKENS)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.encode_tokens(torch.zeros(1, length, dtype=torch.long, device=device))
    return int(counter.get_total_flops())
