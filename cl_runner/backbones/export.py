"""A trained network's weights as a file, or for a language model a folder, that `backbone.pretrained` loads."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.backbones.clip import CLIPClassifier
from cl_runner.backbones.heads import Head
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.errors import RequestError

SUFFIX = ".safetensors"
IN_FOLDER = f"model{SUFFIX}"  # what transformers looks for


def check_export(path: str | Path, network: TaskNetwork, task: int | None = None) -> Path:
    """Returns where weights are to go, before any work is done; those of one task, or of all.

    A language model may go into a folder, which has no ending, as ``save_pretrained`` of transformers lays it out.

    Raises:
        RequestError: the name has another ending, the folder cannot be made, or no one set of weights is the network.
    """
    file = Path(path).expanduser()
    if file.suffix != SUFFIX and (file.suffix or not network.reads_text):
        raise RequestError(
            f"export={path}: weights are written as {SUFFIX}",
            f"for example export=weights{SUFFIX}" + (", or a folder without an ending" if network.reads_text else ""),
        )
    if network.per_task and task is None:
        raise RequestError(
            f"export={path}: adapter={network.adapter.label} keeps a set of weights for every task",
            "write those of one task when the run is done: cl-report export RUN --merged FILE --task N",
        )
    if any("base_layer" in name.split(".") for name, _ in network.named_modules()):
        raise RequestError(
            f"export={path}: adapter={network.adapter.label} renames the layers that it wraps",
            "use adapter=lora or another built-in method; cl_runner.adapters.interchange writes PEFT's own format",
        )
    try:
        (file.parent if file.suffix else file).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"export={path}: cannot make its folder: {error}", "choose another place") from error
    return file


def merged_state(network: TaskNetwork, task: int | None = None) -> dict[str, Tensor]:
    """The weights under their names in the backbone's library, deltas merged into them; copies, on the CPU.

    With ``task`` they are those that it computes with: its set, its copies of modules and its classifier.

    Of weights that a language model uses twice (its embedding and its output layer) the first name is kept.
    """
    if task is not None:
        network.activate(task)
    if network.adapter is not None:
        network.adapter.merge()
    root = network.backbone.clip if isinstance(network.backbone, CLIPClassifier) else network.backbone
    copied = [name for name, module in root.named_modules() if hasattr(module, "copies") and hasattr(module, "base")]
    tied = _repeated(root) if network.reads_text else set()
    state = {}
    for name, item in root.state_dict().items():
        if name in tied:
            continue
        owner = next((one for one in copied if name.startswith(f"{one}.")), None)  # a module with copies for tasks
        if owner is not None:
            own: Any = root.get_submodule(owner)
            used = f"{owner}.base." if task is None or own.active is None else f"{owner}.copies.{own.active}."
            if not name.startswith(used):
                continue
            name = name.replace(used, f"{owner}.", 1)
        if "deltas" not in name.split("."):
            state[name] = item.detach().cpu().clone()
    if network.adapter is not None:
        network.adapter.unmerge()
    if isinstance(getattr(network, "head", None), Head):
        classifier = str(network.classifier_name)
        head = f"{classifier}.classifiers.{task if task is not None and network.separate_heads else 0}."
        state = {
            name.replace(head, f"{classifier}."): item
            for name, item in state.items()
            if name.startswith(head) or not name.startswith(f"{classifier}.classifiers.")
        }
    return {name: item.contiguous() for name, item in state.items()}


def save_weights(network: TaskNetwork, path: str | Path, task: int | None = None) -> Path:
    """Writes `merged_state` as safetensors, under a temporary name first; returns the file or folder.

    Raises:
        RequestError: see `check_export`, or the place cannot be written to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    place = check_export(path, network, task)
    file = place if place.suffix else place / IN_FOLDER
    part = file.with_name(file.name + ".part")
    metadata: Any = getattr(network.backbone, "metadata", None)
    with torch.no_grad():
        state = merged_state(network, task)
    try:
        if file != place:
            configuration = json.loads(metadata["configuration"])
            (place / "config.json").write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")
        save_file(state, part, metadata=metadata)
        part.replace(file)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise RequestError(
            f"export={path}: cannot be written: {error}", "make room, or choose another place"
        ) from error
    return place


def _repeated(root: nn.Module) -> set[str]:
    """Further names of parameters that have one already."""
    first = {name for name, _ in root.named_parameters()}
    return {name for name, _ in root.named_parameters(remove_duplicate=False)} - first
