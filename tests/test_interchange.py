"""Our LoRA against PEFT's: the same arithmetic from the same factors, and the same files."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path

import builders  # noqa: F401  (one thread)
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from cl_runner.adapters import (
    CoDyRA,
    ConvLoRA,
    ConvLoRACP,
    DCLoRA,
    DyLoRA,
    Hybrid,
    LoRA,
    Placement,
    load_peft,
    save_peft,
)
from cl_runner.backbones.generation import greedy
from cl_runner.backbones.transformers import Transformers
from cl_runner.errors import RequestError

pytestmark = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out", "ignore:.*alpha_pattern", "ignore:Setting `save_emb", "ignore:`is_grad"
)

# ------------------------------------------------------------------------------------------- one layer

LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (4, 7)),
    "linear-no-bias": (lambda: nn.Linear(7, 5, bias=False), (4, 7)),
    "linear-on-tokens": (lambda: nn.Linear(7, 5), (2, 3, 7)),
    "conv1d": (lambda: Conv1D(5, 7), (2, 3, 7)),
    "conv3": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 7)),
    "conv1": (lambda: nn.Conv2d(4, 6, 1), (2, 4, 7, 7)),
    "stride-padding": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 7)),
    "pairs": (lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2)), (2, 4, 7, 7)),
    "padding-same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 7, 7)),
}
APART = {  # PEFT forms the right delta of the weight, and leaves dilation and padding mode out of its forward pass
    "dilation": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2), (2, 4, 7, 7)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 7, 7)),
}


def ours(model: nn.Module, **options) -> LoRA:
    """LoRA with random factors on all of a network."""
    adapter = LoRA(**{"rank": 3, "alpha": 5.0, "base": "frozen"} | options)
    adapter.attach(model)
    adapter.begin_task(0)
    fill(adapter)
    return adapter


def fill(adapter: LoRA) -> None:
    """Gives every factor values; with B = 0 everything would agree with everything."""
    generator = torch.Generator().manual_seed(3)
    for _, delta in adapter.deltas_of(adapter.active or 0).values():
        for item in delta.parameters():
            item.data = torch.randn(item.shape, generator=generator, dtype=item.dtype)


def pair(kind: str) -> tuple[nn.Module, LoRA, nn.Module, torch.Tensor]:
    """The same layer adapted by us and by PEFT with the same factors, in float64, and an input."""
    torch.manual_seed(0)
    make, shape = {**LAYERS, **APART}[kind]
    model = nn.Sequential(make()).double()
    twin = copy.deepcopy(model)
    adapter = ours(model)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"], fan_in_fan_out=kind == "conv1d")
    twin = peft.inject_adapter_in_model(config, twin, "same")
    _, delta = adapter.deltas_of(0)["0"]
    twin[0].lora_A["same"].weight.data.copy_(delta.A)
    twin[0].lora_B["same"].weight.data.copy_(delta.B)
    return model, adapter, twin, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("compute", ["auto", "two_path", "merged"])
@pytest.mark.parametrize("kind", LAYERS)
def test_output_and_gradients_are_those_of_peft(kind, compute):
    model, adapter, twin, x = pair(kind)
    model[0].compute = compute
    assert (model(x) - twin(x)).abs().max() < 1e-10
    assert (model(x) - twin[0].base_layer(x)).abs().max() > 0.1
    inputs = [x.clone().requires_grad_(True) for _ in range(2)]
    for network, given in ((model, inputs[0]), (twin, inputs[1])):
        network(given).sin().sum().backward()
    _, delta = adapter.deltas_of(0)["0"]
    assert (delta.A.grad - twin[0].lora_A["same"].weight.grad).abs().max() < 1e-10
    assert (delta.B.grad - twin[0].lora_B["same"].weight.grad).abs().max() < 1e-10
    assert (inputs[0].grad - inputs[1].grad).abs().max() < 1e-10
    assert min(delta.A.grad.abs().max(), delta.B.grad.abs().max(), inputs[0].grad.abs().max()) > 0.1


@pytest.mark.parametrize("kind", [*LAYERS, *APART])
def test_the_delta_is_that_of_peft(kind):
    model, adapter, twin, x = pair(kind)
    assert (adapter.delta_weight("0") - twin[0].get_delta_weight("same")).abs().max() < 1e-10
    before = model(x)
    twin[0].merge()
    assert (before - twin(x)).abs().max() < 1e-10


# ------------------------------------------------------------------------------------------ whole networks


def mixed() -> nn.Module:
    """A convolution, a named twin of it further in, and linear layers; one name is the ending of another."""
    torch.manual_seed(0)
    inner = nn.Sequential(OrderedDict(conv1=nn.Conv2d(6, 6, 3, padding=1)))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 3, stride=2), layer1=inner, flatten=nn.Flatten(), fc=nn.Linear(54, 8),
            relu=nn.ReLU(), out=nn.Linear(8, 4),
        )
    ).double()  # fmt: skip


def gpt2() -> nn.Module:
    """A tiny GPT-2 with random weights."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16, tie_word_embeddings=False)
    ).double()


def answer(model: nn.Module) -> torch.Tensor:
    """The output on fixed inputs, in evaluation mode, without gradients."""
    model.eval()
    with torch.no_grad():
        if any(isinstance(item, nn.Conv2d) for item in model.modules()):
            return model(torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double())
        return model(torch.arange(14).view(2, 7)).logits


NETWORKS = {  # how to make it, our placement, PEFT's layers
    "mixed": (mixed, Placement(), ["conv1", "layer1.conv1", "fc", "out"]),
    "one-of-two": (mixed, Placement(names=["conv1", "fc"]), ["^conv1$|^fc$"]),
    "c_attn": (gpt2, Placement(pattern="c_attn"), ["c_attn"]),
    "conv1d-and-linear": (gpt2, Placement(pattern="c_attn|c_proj|lm_head", head=True), ["c_attn", "c_proj", "lm_head"]),
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LoRA, {"rank": 3, "alpha": 5}),
        (LoRA, {"rank": 3, "linear_rank": 2, "alpha": 7}),
        (LoRA, {"rank": 3, "linear_rank": 2}),  # alpha = rank, so that layers differ in both
        (LoRA, {"rank": 4, "eval_rank": 2}),
        (DyLoRA, {"rank": 4, "alpha": 6}),
        (DCLoRA, {"rank": 2}),
        (Hybrid, {"rank": 2, "alpha": 1}),
        (CoDyRA, {"rank": 3}),
    ],
    ids=lambda item: item.__name__ if isinstance(item, type) else str(item),
)
@pytest.mark.parametrize("name", NETWORKS)
def test_peft_computes_what_we_compute(name, kind, options, tmp_path):
    make, placement, _ = NETWORKS[name]
    model = make()
    before = answer(model)
    adapter = kind(**options, base="frozen")
    adapter.attach(model, placement)
    adapter.begin_task(0)
    fill(adapter)
    save_peft(adapter, tmp_path / "files")
    assert {item.name for item in (tmp_path / "files").glob("*.*")} >= {"adapter_config.json"}
    theirs = peft.PeftModel.from_pretrained(make(), str(tmp_path / "files"))
    torch.testing.assert_close(answer(theirs), answer(model), rtol=0, atol=1e-9)
    assert (answer(model) - before).abs().max() > 0.1
    adapted = {item.removeprefix("base_model.model.") for item, module in theirs.named_modules()
               if isinstance(module, peft.tuners.lora.LoraLayer)}  # fmt: skip
    assert adapted == set(adapter.adapted_layers())  # no layer more whose name ends like one of ours
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(answer(merged), answer(model), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 3, "lora_alpha": 5},
        {"r": 4, "lora_alpha": 2, "use_rslora": True},
        {"r": 4, "lora_alpha": 2, "rank_pattern": {"fc|attn.c_attn": 2}, "alpha_pattern": {"^conv1|c_proj": 7}},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gated", [False, True])
def test_we_compute_what_peft_has_trained(name, options, gated, tmp_path):
    make, placement, targets = NETWORKS[name]
    targets = targets[0] if targets[0].startswith("^") else targets
    theirs = peft.get_peft_model(make(), peft.LoraConfig(target_modules=targets, **options))
    optimizer = torch.optim.SGD([item for item in theirs.parameters() if item.requires_grad], lr=0.5)
    for _ in range(3):  # B's gradient first, then both
        theirs.eval()
        optimizer.zero_grad()
        inputs = torch.randn(5, 3, 8, 8).double() if make is mixed else torch.randint(50, (2, 7))
        output = theirs(inputs)
        (output if make is mixed else output.logits).square().mean().backward()
        optimizer.step()
    theirs.save_pretrained(tmp_path)
    model = make()
    before = answer(model)
    adapter = (CoDyRA if gated else LoRA)(rank=1, base="frozen")
    adapter.attach(model, placement)
    adapter.begin_task(0)
    load_peft(adapter, tmp_path, task=0)
    torch.testing.assert_close(answer(model), answer(theirs), rtol=0, atol=1e-9)
    assert (answer(model) - before).abs().max() > 1e-4
    ranks = {row.name: row.rank for row in adapter.layer_report(0)}
    assert set(ranks.values()) <= {2, 3, 4} and ranks[next(iter(ranks))] == (2 if name.startswith("c") and
        "rank_pattern" in options else options["r"])  # fmt: skip
    assert all(item.requires_grad for _, delta in adapter.deltas_of(0).values() for item in delta.parameters())
    save_peft(adapter, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(make(), str(tmp_path / "again"))
    torch.testing.assert_close(answer(again), answer(model), rtol=0, atol=1e-9)


def test_each_tasks_set_goes_into_a_folder_of_its_own(tmp_path):
    model = mixed()
    adapter = LoRA(rank=2, sharing="per_task", base="frozen")
    adapter.attach(model)
    answers = {}
    for task in (0, 1):
        adapter.begin_task(task)
        for _, delta in adapter.deltas_of(task).values():
            nn.init.normal_(delta.B)
        answers[task] = answer(model)
        adapter.end_task()
    assert not torch.equal(answers[0], answers[1])
    for task in (1, 0):
        save_peft(adapter, tmp_path / str(task), task)
    save_peft(adapter, tmp_path / "active")  # that of task 1, which was the last one
    for name, task in (("0", 0), ("1", 1), ("active", 1)):
        theirs = peft.PeftModel.from_pretrained(mixed(), str(tmp_path / name))
        torch.testing.assert_close(answer(theirs), answers[task], rtol=0, atol=1e-9)
    adapter.activate(1)
    adapter.merge()  # what is merged goes before other factors come
    load_peft(adapter, tmp_path / "0", task=1)
    assert torch.equal(answer(model), answers[0])


def test_the_files_say_what_they_are_in_peft_s_words(tmp_path):
    adapter = ours(mixed(), linear_rank=2)
    save_peft(adapter, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["bias"] == "none" and config["fan_in_fan_out"] is False
    assert (config["r"], config["lora_alpha"]) == (3, 5)
    assert config["rank_pattern"] == {"^fc": 2, "^out": 2} and config["alpha_pattern"] == {}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {name: tuple(item.shape) for name, item in tensors.items() if "layer1" in name or "fc" in name} == {
        "base_model.model.layer1.conv1.lora_A.weight": (3, 6, 3, 3),
        "base_model.model.layer1.conv1.lora_B.weight": (6, 3, 1, 1),
        "base_model.model.fc.lora_A.weight": (2, 54),
        "base_model.model.fc.lora_B.weight": (8, 2),
    }
    language = gpt2()
    adapter = LoRA(rank=2, dropout=0.3, base="frozen")
    adapter.attach(language, "linears")
    adapter.begin_task(0)
    save_peft(adapter, tmp_path / "gpt2")
    config = json.loads((tmp_path / "gpt2" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True and config["lora_dropout"] == 0.3
    assert set(config["target_modules"]) == set(adapter.adapted_layers())  # exact names


def test_convlora_s_linear_layers_are_lora(tmp_path):
    model = mixed()
    adapter = ConvLoRA(rank=2, alpha=3, base="frozen")
    adapter.attach(model, "linears")
    adapter.begin_task(0)
    fill(adapter)
    save_peft(adapter, tmp_path)
    theirs = peft.PeftModel.from_pretrained(mixed(), str(tmp_path))
    torch.testing.assert_close(answer(theirs), answer(model), rtol=0, atol=1e-9)


# ----------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LoRA, {"rank": 4, "alpha": 6}),
        (DyLoRA, {"rank": 4, "alpha": 6, "eval_rank": 2}),
        (DCLoRA, {"rank": 3}),
        (Hybrid, {"rank": 3, "alpha": 2}),
        (CoDyRA, {"rank": 3}),  # before its task ends: afterwards its factors are part of the weights
    ],
    ids=lambda item: item.__name__ if isinstance(item, type) else "",
)
@pytest.mark.parametrize(("name", "placement"), [("gpt2", "c_attn"), ("gpt2", "."), ("llama", "_proj$")])
def test_peft_generates_the_text_that_we_generate(name, placement, kind, options, tmp_path):
    def make() -> nn.Module:
        torch.manual_seed(0)
        wide = {"initializer_range": 0.3, "num_attention_heads": 4}
        recipe = Transformers(name=name, layers=2, width=32, tokenizer="bytes", options=wide)
        return recipe.build_language_model().double()

    def generated(model: nn.Module, prompt: torch.Tensor) -> list[int]:
        whole = model.generate(
            input_ids=prompt[None], attention_mask=torch.ones_like(prompt)[None], max_new_tokens=12, do_sample=False,
            eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        return [item for item in whole[0, len(prompt) :].tolist() if item != 1]

    draws = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 259, (length,), generator=draws) for length in (2, 7, 4)]
    model = make()
    before = greedy(model, prompts, most=12, eos=1, pad=0)
    adapter = kind(**options, base="frozen")
    adapter.attach(model, Placement(pattern=placement))
    adapter.begin_task(0)
    fill(adapter)
    save_peft(adapter, tmp_path)
    theirs = peft.PeftModel.from_pretrained(make(), str(tmp_path)).eval()
    ours = greedy(model, prompts, most=12, eos=1, pad=0)
    assert ours == [generated(theirs, prompt) for prompt in prompts]
    assert all(mine != base for mine, base in zip(ours, before, strict=True))
    assert all(mine for mine in ours)


def test_files_read_over_a_half_base_stay_in_full_precision(tmp_path):
    adapters = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Transformers(
            name="gpt2", layers=2, width=32, tokenizer="bytes", dtype="bfloat16"
        ).build_language_model()
        adapter = LoRA(rank=2, base="frozen")
        adapter.attach(model, "linears")
        adapter.begin_task(0)
        adapters.append(adapter)
    fill(adapters[0])
    save_peft(adapters[0], tmp_path)
    load_peft(adapters[1], tmp_path)
    for name, (_, delta) in adapters[1].deltas_of(0).items():
        _, first = adapters[0].deltas_of(0)[name]
        assert delta.A.dtype == torch.float32 and torch.equal(delta.A, first.A) and torch.equal(delta.B, first.B)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "layer", "options", "message"),
    [
        (LoRA, lambda: nn.MultiheadAttention(8, 2), {}, r"'0\.q' is a slice of a packed layer"),
        (LoRA, lambda: nn.Conv2d(4, 4, 3, groups=2), {}, "'0' is a grouped convolution"),
        (LoRA, lambda: nn.Conv2d(4, 4, 3, dilation=2), {}, "'0' is a convolution with dilation"),
        (LoRA, lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), {}, "'0' is a convolution with dil"),
        (ConvLoRA, lambda: nn.Conv2d(4, 4, 3), {}, "'0' has ConvFactors"),
        (ConvLoRACP, lambda: nn.Conv2d(4, 4, 3), {}, "'0' has CPFactors"),
        (LoRA, lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), {"sharing": "per_task"}, r"'0\.1' has a c"),
        (LoRA, lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {"full": ["0.1"], "sharing": "per_task"},
         r"'0\.1' has a copy"),
    ],
)  # fmt: skip
def test_what_peft_cannot_say_is_refused_by_name(kind, layer, options, message, tmp_path):
    adapter = kind(rank=1, base="frozen", **options)
    adapter.attach(nn.Sequential(layer()))
    adapter.begin_task(0)
    with pytest.raises(RequestError, match=message):
        save_peft(adapter, tmp_path / "files")
    assert not (tmp_path / "files").exists()


def test_a_task_without_a_set_is_refused(tmp_path):
    adapter = CoDyRA(rank=1, base="frozen")
    adapter.attach(nn.Sequential(nn.Linear(4, 4)))
    for act in (lambda: save_peft(adapter, tmp_path), lambda: load_peft(adapter, tmp_path, task=0)):
        with pytest.raises(RequestError, match="task 0 has no set"):
            act()


def damage(folder: Path, **changes) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), r"adapter_config\.json cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), r"adapter_config\.json cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").write_text("x"), r"safetensors cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"safetensors cannot be read"),
        (lambda folder: damage(folder, peft_type="LOHA"), "peft_type=LOHA is not LORA"),
        (lambda folder: damage(folder, use_dora=True), "use_dora=True is not a plain LoRA"),
        (lambda folder: damage(folder, bias="all"), "bias=all is not a plain LoRA"),
        (lambda folder: damage(folder, init_lora_weights="pissa"), "init_lora_weights=pissa is not"),
        (lambda folder: swap(folder, "fc", "fd"), r"has no place here for base_model\.model\.fd\.lora_A\.weight"),
        (lambda folder: swap(folder, "fc.lora_A", None), r"lacks base_model\.model\.fc\.lora_A\.weight"),
        (lambda folder: swap(folder, "fc.lora_A", "out.lora_A"), "lacks"),
        (lambda folder: narrow(folder), r"layer 'fc' has the shape \[8, 54\] here, and A and B are \[3, 53\]"),
    ],
)
def test_files_that_do_not_fit_are_refused_and_change_nothing(change, message, tmp_path):
    adapter = ours(mixed())
    save_peft(adapter, tmp_path)
    change(tmp_path)
    before = answer(adapter.root)
    with pytest.raises(RequestError, match=message):
        load_peft(adapter, tmp_path)
    assert torch.equal(answer(adapter.root), before)


def swap(folder: Path, old: str, new: str | None) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if old in name]:
        item = tensors.pop(name)
        if new is not None:
            tensors[name.replace(old, new)] = item
    save_file(tensors, file)


def narrow(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    name = "base_model.model.fc.lora_A.weight"
    save_file(load_file(file) | {name: torch.zeros(3, 53)}, file)
