"""LoRA factors in the PEFT library's own files: adapter_config.json and adapter_model.safetensors.

A layer's factors stand under `base_model.model.LAYER.lora_A.weight` and `lora_B.weight`, LAYER as in the network to
which the adapter is attached (in a `Network`, its backbone); the shapes are the same here and there. What PEFT cannot
say is refused by name rather than left out.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cl_runner.adapters.adapter import Adapter
from cl_runner.adapters.codyra import CoDyRA, GatedFactors
from cl_runner.adapters.delta_adapter import DeltaAdapter
from cl_runner.adapters.factors import Delta, LoRAFactors
from cl_runner.adapters.layers import Site, Slice, is_conv1d
from cl_runner.adapters.lora import LoRA
from cl_runner.adapters.peft_methods import library
from cl_runner.backbones.heads import Head
from cl_runner.errors import RequestError

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAIN_STARTS = (True, False, "gaussian", "orthogonal")  # initialisations that leave the base's weights alone


def save_peft(adapter: DeltaAdapter, folder: Path | str, task: int | None = None) -> None:
    """Writes a task's LoRA factors so that `peft.PeftModel.from_pretrained(base, folder)` computes what we compute.

    The base, whose weights are not written, is the network as it was before `attach`, with the head and whatever else
    trained in full. Components masked by `eval_rank` are left out; CoDyRA's gates are multiplied into B.

    Args:
        adapter: LoRA or what builds on it, attached.
        folder: where the two files go; made where it is not there.
        task: whose set; None: the active one's.

    Raises:
        RequestError: the task has no set, or it has something that PEFT cannot express.
    """
    if not isinstance(adapter, DeltaAdapter):
        raise RequestError(
            f"{type(adapter).__name__} has no LoRA factors to save", "use adapter=lora, dylora, dclora or hybrid"
        )
    items = _set_of(adapter, task)
    _check_whole(adapter, task)
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for name, (site, delta) in items.items():
        factors = _expressible(adapter, name, site, delta)
        rank = factors.rank if factors.eval_limit is None else min(factors.eval_limit, factors.rank)
        b = factors.B.detach()
        if isinstance(factors, GatedFactors):
            b = b * factors.g.detach().view(1, -1, *([1] * (b.dim() - 2)))
        tensors[f"{PREFIX}{name}.lora_A.weight"] = factors.A.detach()[:rank].cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b[:, :rank].cpu().contiguous()
        ranks[name], alphas[name] = rank, factors.scaling * rank
    config = _config(adapter, ranks, alphas, any(is_conv1d(site) for site, _ in items.values()))
    Path(folder).mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, Path(folder) / WEIGHTS, metadata={"format": "pt"})


def check_savable(adapter: Adapter, folder: Path | str) -> None:
    """Says before any work whether `save_peft` will have one set of LoRA factors to write when a run has ended.

    Raises:
        RequestError: it will not, or the folder cannot be made.
    """
    key, name = f"export_adapter={folder}", adapter.label
    hint = "use adapter=lora, dylora, dclora or hybrid with adapter.sharing=shared"
    if isinstance(adapter, CoDyRA):
        raise RequestError(f"{key}: adapter={name} merges its factors into the weights after every task", hint)
    if not isinstance(adapter, DeltaAdapter) or not isinstance(adapter, LoRA):
        raise RequestError(f"{key}: adapter={name} has no LoRA factors", hint)
    if adapter.per_task:
        raise RequestError(f"{key}: adapter={name} keeps a set of factors for every task", hint)
    if adapter.base == "first_task":
        raise RequestError(
            f"{key}: adapter.base=first_task trains the base itself, which PEFT's files do not hold",
            "use adapter.base=frozen, or export=FILE for the merged weights",
        )
    if adapter.full:
        raise RequestError(
            f"{key}: adapter.full={list(adapter.full)} trains in full, which PEFT's files do not hold",
            "use adapter.full=[], or export=FILE for the merged weights",
        )
    sliced = next((name for name, site in adapter.layers.items() if isinstance(site, Slice | Head)), None)
    if sliced is not None:
        what = "the classifier" if isinstance(adapter.layers[sliced], Head) else "a slice of a packed layer"
        raise RequestError(
            f"{key}: '{sliced}' is {what}, whose factors PEFT's files have no place for",
            "place the adapter on whole layers, for GPT-2 placement=match placement.pattern=c_attn",
        )
    try:
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{key}: cannot be made: {error}", "choose another place") from error


@torch.no_grad()
def load_peft(adapter: DeltaAdapter, folder: Path | str, task: int | None = None) -> None:
    """Reads LoRA factors that PEFT has written into a task's set; ranks and scales become those of the files.

    Args:
        adapter: LoRA or what builds on it, attached, with the task begun; its layers are those of the files.
        folder: with the two files.
        task: whose set; None: the active one's.

    Raises:
        RequestError: the files are not there, are damaged, do not fit, or hold what our LoRA does not have (DoRA,
            biases, modules trained in full, a base changed by its initialisation).
    """
    adapter.unmerge()
    items = _set_of(adapter, task)
    config, tensors = _read(Path(folder))
    _check_readable(config, Path(folder) / CONFIG)
    wanted = {f"{PREFIX}{name}.lora_{factor}.weight" for name in items for factor in "AB"}
    for found, words in ((tensors.keys() - wanted, "has no place here for"), (wanted - tensors.keys(), "lacks")):
        if found:
            names = ", ".join(sorted(found)[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            raise RequestError(
                f"{Path(folder) / WEIGHTS} {words} {names}", "place the adapter on the layers that PEFT has adapted"
            )
    fitting = {}
    for name, (site, delta) in items.items():
        factors = _expressible(adapter, name, site, delta)
        a, b = (tensors[f"{PREFIX}{name}.lora_{factor}.weight"].to(factors.A) for factor in "AB")
        shape = site.base_weight.shape
        if a.shape[1:] != shape[1:] or b.shape[:2] != (shape[0], len(a)):
            raise RequestError(f"{Path(folder) / WEIGHTS}: layer '{name}' has the shape {list(shape)} here, and A and "
                               f"B are {list(a.shape)} and {list(b.shape)}", "load it into the network it was "
                               "trained on")  # fmt: skip
        fitting[name] = (factors, a, b)
    for name, (factors, a, b) in fitting.items():
        learns = factors.A.requires_grad
        factors.A, factors.B = (nn.Parameter(item.clone(), requires_grad=learns) for item in (a, b))
        factors.scaling = _scaling(config, name, len(a))
        if isinstance(factors, GatedFactors):  # its gates take the scale
            factors.g = nn.Parameter(torch.full((len(a),), factors.scaling).to(a), requires_grad=learns)
            factors.scaling = 1.0


def _set_of(adapter: DeltaAdapter, task: int | None) -> dict[str, tuple[Site, Delta]]:
    which = (adapter.active or 0) if task is None else task
    items = adapter.deltas_of(which)
    if not items:
        raise RequestError(
            f"{type(adapter).__name__}: task {which} has no set of factors",
            "begin the task first; CoDyRA's factors are part of the weights once a task has ended",
        )
    return items


def _expressible(adapter: DeltaAdapter, name: str, site: Site, delta: Delta) -> LoRAFactors:
    """The factors of a layer that PEFT's LoRA computes with too.

    Raises:
        RequestError: it cannot.
    """
    why = None
    if isinstance(adapter.layers[name], Head):
        why = "is one task's classifier"
    elif isinstance(site, Slice):
        why = "is a slice of a packed layer"
    elif not isinstance(delta, LoRAFactors):
        why = f"has {type(delta).__name__}, which are no LoRA factors"
    elif isinstance(site, nn.Conv2d):
        if site.groups > 1:
            why = "is a grouped convolution"
        elif any(step != 1 for step in site.dilation) or site.padding_mode != "zeros":
            why = "is a convolution with dilation or padding of its own, which PEFT's factors leave out"
    if why is not None:
        raise RequestError(f"placement: '{name}' {why}; PEFT cannot express its factors", "place LoRA on other layers")
    assert isinstance(delta, LoRAFactors)
    return delta


def _check_whole(adapter: DeltaAdapter, task: int | None) -> None:
    """Refuses a set that is more than its factors: without the rest, PEFT would compute something else."""
    which = str((adapter.active or 0) if task is None else task)
    copied = [name for name, item in adapter.copies.named.items() if which in item.copies]
    if copied:
        raise RequestError(
            f"'{copied[0]}' has a copy for this task alone, which PEFT's files have no place for",
            "use adapter.sharing=shared, or a network without BatchNorm and adapter.full=[]",
        )


def _config(adapter: DeltaAdapter, ranks: dict[str, int], alphas: dict[str, float], fan_in_fan_out: bool) -> Any:
    """PEFT's configuration: the most frequent rank and scale, and patterns for the layers that have others."""
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    modules = [name for name, _ in adapter.root.named_modules()]
    alone = not any(other.endswith(f".{name}") for name in ranks for other in modules)  # PEFT compares endings
    return library().LoraConfig(
        r=rank,
        lora_alpha=_whole(alpha),
        target_modules=list(ranks) if alone else "|".join(re.escape(name) for name in ranks),
        rank_pattern={f"^{re.escape(name)}": own for name, own in ranks.items() if own != rank},
        alpha_pattern={f"^{re.escape(name)}": _whole(own) for name, own in alphas.items() if own != alpha},
        lora_dropout=float(getattr(adapter, "dropout", 0.0)),
        fan_in_fan_out=fan_in_fan_out,
    )


def _whole(number: float) -> float:
    return round(number) if math.isclose(number, round(number), rel_tol=1e-12) else number


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text())
        file = folder / WEIGHTS
        tensors = load_file(file)
        # beside an output layer PEFT writes the base's own weights too
        return config, {name: item for name, item in tensors.items() if ".base_layer." not in name}
    except (OSError, ValueError, SafetensorError) as error:
        raise RequestError(
            f"{file} cannot be read: {type(error).__name__}", f"a folder of PEFT's holds {CONFIG} and {WEIGHTS}"
        ) from error


def _check_readable(config: dict[str, Any], file: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise RequestError(f"{file}: peft_type={config.get('peft_type')} is not LORA", "load it with adapter=peft")
    wrong = [key for key in ("use_dora", "lora_bias", "modules_to_save", "layer_replication") if config.get(key)]
    wrong += [key for key in ("bias",) if config.get(key, "none") != "none"]
    wrong += [key for key in ("init_lora_weights",) if config.get(key, True) not in PLAIN_STARTS]
    if wrong:
        raise RequestError(f"{file}: {wrong[0]}={config[wrong[0]]} is not a plain LoRA", "use adapter=peft for it")


def _scaling(config: dict[str, Any], name: str, rank: int) -> float:
    """alpha / r of a layer, or alpha / sqrt(r) where the files say so."""
    patterns = config.get("alpha_pattern") or {}
    own = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), None)
    alpha = float(config.get("lora_alpha", 8) if own is None else own)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
