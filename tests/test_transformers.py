"""Language models of transformers: configurations without a network, sizes, weights, tokenizers, half precision."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders  # noqa: F401  (one thread)
import huggingface_hub
import pytest
import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from cl_runner.adapters import CoDyRA, DyLoRA, LoRA, NoAdapter, Placement
from cl_runner.backbones.configurations import NAMES, SHIPPED
from cl_runner.backbones.export import check_export, save_weights
from cl_runner.backbones.language import LanguageNetwork
from cl_runner.backbones.tokenizers import ByteTokenizer, LibraryTokenizer, load_tokenizer, record_tokenizer
from cl_runner.backbones.transformers import Transformers
from cl_runner.errors import RequestError

TINY = {"layers": 2, "width": 32, "tokenizer": "bytes"}


def tiny(name: str = "gpt2", seed: int = 0, **options: Any) -> Any:
    """A model of two layers of width 32 on bytes, with weights large enough to tell things apart."""
    torch.manual_seed(seed)
    spread = "init_std" if name == "opt" else "initializer_range"
    given = {spread: 0.3, "num_attention_heads": 4, **options.pop("options", {})}
    return Transformers(**{"name": name, **TINY, **options}, options=given).build_language_model()


def ids(*shape: int, seed: int = 3) -> Tensor:
    return torch.randint(3, 259, shape, generator=torch.Generator().manual_seed(seed))


def refusal(action: Any) -> str:
    """What a refusal says: one or two lines."""
    with pytest.raises(RequestError) as caught:
        action()
    assert len(str(caught.value).splitlines()) <= 2, str(caught.value)
    return str(caught.value)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and nothing in the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


# -------------------------------------------------------------------------------------- known by their names


def gpt2_parameters(d: int, layers: int) -> int:
    """Embeddings of 50257 tokens and 1024 places, per block 4 d^2 + 8 d^2 weights and 13 d of the rest, a last norm."""
    return 50257 * d + 1024 * d + layers * (12 * d * d + 13 * d) + 2 * d


LLAMA_2 = 6_738_415_616  # published
COUNTS = {
    "gpt2": 124_439_808,  # published, as the next three
    "openai-community/gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": gpt2_parameters(768, 6),
    "meta-llama/Llama-2-7b-chat-hf": LLAMA_2,
    "meta-llama/Llama-2-7b-hf": LLAMA_2,
}


@pytest.mark.parametrize("name", COUNTS)
def test_models_that_experiments_name_ship_with_their_configuration(name, offline):
    recipe = Transformers(name=name)
    with torch.device("meta"):
        model = recipe.build_language_model()
    assert sum(item.numel() for item in model.parameters()) == COUNTS[name]
    assert all(item.is_meta for item in model.parameters())
    assert recipe.positions() == (4096 if "Llama" in name else 1024)
    assert model.config._attn_implementation == "sdpa" and model.config.use_cache is False


def test_published_counts_are_those_of_the_arithmetic():
    sizes = {"gpt2": (768, 12), "openai-community/gpt2-medium": (1024, 24), "gpt2-large": (1280, 36)}
    for name, (d, layers) in (sizes | {"gpt2-xl": (1600, 48)}).items():
        assert COUNTS[name] == gpt2_parameters(d, layers)
    block = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert 2 * 32000 * 4096 + 32 * block + 4096 == LLAMA_2
    assert {f"{file}.json" for file in NAMES.values()} == {file.name for file in SHIPPED.iterdir()}


def test_llama_2_takes_lora_where_it_is_placed():
    with torch.device("meta"):
        model = Transformers(name="meta-llama/Llama-2-7b-hf", dtype="bfloat16").build_language_model()
        adapter = LoRA(rank=8, base="frozen")
        adapter.attach(model, "qkvo_mlp")
        adapter.begin_task(0)
    trained = [item for item in model.parameters() if item.requires_grad]
    assert sum(item.numel() for item in trained) == 32 * (4 * 8 * (4096 + 4096) + 3 * 8 * (4096 + 11008))
    assert {item.dtype for item in trained} == {torch.float32}
    assert {item.dtype for item in model.parameters() if not item.requires_grad} == {torch.bfloat16}


def test_gpt2_small_takes_a_step_on_the_cpu():
    torch.manual_seed(0)
    model = Transformers(name="gpt2").build_language_model()
    assert model.config.resid_pdrop == model.config.attn_pdrop == 0.1
    base = {name: item.detach().clone() for name, item in model.named_parameters() if "c_attn" in name}
    adapter = LoRA(rank=64, alpha=32, dropout=0.05, base="frozen")
    adapter.attach(model, Placement(pattern=r"\.c_attn$"))
    adapter.begin_task(0)
    trained = [item for item in model.parameters() if item.requires_grad]
    assert sum(item.numel() for item in trained) == 2_359_296 and len(adapter.adapted_layers()) == 12
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    x = torch.arange(16).view(1, 16) * 3000
    losses = []
    for _ in range(2):
        loss = functional.cross_entropy(model(x).logits[0, :-1], x[0, 1:])
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(losses[0] - 10.8) < 0.5  # ln 50257, nothing being known
    assert losses[1] < losses[0]
    assert all(float(delta.B.detach().abs().max()) > 0 for _, delta in adapter.open_deltas())
    assert all(torch.equal(dict(model.named_parameters())[name], item) for name, item in base.items())


# ------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("gpt2", {"layers": 4, "width": 256}, {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_inner": None}),
        ("gpt2", {"width": 1024}, {"n_layer": 12, "n_embd": 1024, "n_head": 16}),
        ("gpt2", {"width": 32}, {"n_head": 1}),  # 64 does not divide 32
        ("gpt2", {"width": 96}, {"n_head": 3}),
        ("llama", {"width": 64, "options": {"num_attention_heads": 4}}, {"head_dim": 16, "num_key_value_heads": 4}),
        ("mistral", {"width": 512, "options": {"num_attention_heads": 8}}, {"head_dim": 64, "num_key_value_heads": 1}),
        ("llama", {"layers": 1, "width": 512}, {"num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 128,
         "intermediate_size": 1376, "num_key_value_heads": 4}),
        ("mistral", {"width": 512}, {"num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 1792}),
        ("gemma2", {"layers": 3, "width": 64}, {"num_hidden_layers": 3, "layer_types": ["sliding_attention",
         "full_attention", "sliding_attention"]}),
        ("opt", {"width": 64}, {"word_embed_proj_dim": 64, "ffn_dim": 256, "num_attention_heads": 1}),
    ],
)  # fmt: skip
def test_layers_and_width_change_the_configuration_in_proportion(name, size, expected):
    config = Transformers(name=name, **size).configuration()
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "qwen2", "opt", "mistral", "phi", "gemma2", "bloom"])
def test_small_models_of_many_kinds_run_on_bytes(name):
    recipe = Transformers(name=name, layers=2, width=64, tokenizer="bytes")
    model = recipe.build_language_model().eval()
    recipe.check_tokenizer(recipe.read_tokenizer())
    assert model(ids(2, 5)).logits.shape == (2, 5, 259)
    chosen = Placement().choose(model)
    assert not [item for item in chosen if model.get_submodule(item) is model.get_output_embeddings()]
    with torch.device("meta"):
        planned = recipe.build_language_model(load_weights=False)
    assert [tuple(item.shape) for item in planned.parameters()] == [tuple(item.shape) for item in model.parameters()]


def test_further_keys_go_last_and_have_to_exist():
    recipe = Transformers(name="gpt2", options={"resid_pdrop": 0.0, "num_hidden_layers": 3, "n_positions": 32})
    config = recipe.configuration()
    assert (config.resid_pdrop, config.embd_pdrop, config.n_layer, recipe.positions()) == (0.0, 0.1, 3, 32)
    assert "did you mean 'resid_pdrop'" in refusal(Transformers(name="gpt2", options={"resd_pdrop": 0}).configuration)
    wrong = Transformers(name="gpt2", vocab_size=300, options={"vocab_size": 300})
    assert "backbone.vocab_size" in refusal(wrong.configuration)
    assert "cannot be built" in refusal(Transformers(name="gpt2", options={"n_head": 5}).build_language_model)
    message = refusal(Transformers(name="gpt_neo", layers=2).configuration)
    assert "the configuration is impossible: Configuration for convolutional module is incorrect" in message


def test_the_vocabulary_is_the_configurations_or_that_of_bytes():
    assert Transformers(name="gpt2").configuration().vocab_size == 50257
    assert Transformers(name="gpt2", tokenizer="bytes").configuration().vocab_size == 259
    assert Transformers(name="gpt2", tokenizer="bytes", vocab_size=400).configuration().vocab_size == 400
    assert Transformers(name="gpt2", tokenizer="bytes", pretrained=True).configuration().vocab_size == 50257
    assert Transformers(name="gpt2", tokenizer="bytes").configuration().eos_token_id is None  # 50256 is no byte


def test_the_same_seed_gives_the_same_network():
    first, again, other = (tiny(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(item, again[name]) for name, item in first.items())
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "bert"}, "bert is an encoder, which sees"),
        ({"name": "t5"}, "t5 is an encoder with a decoder"),
        ({"name": "vit"}, "vit is for another task"),
        ({"name": "xlnet", "layers": 1, "width": 64}, "a token changes what is predicted before it"),
        ({"name": "gpt-2"}, "did you mean 'gpt2'?"),
        ({"name": "nobody/nothing"}, "cannot be had from the hub"),
        ({"name": "nobody/nothing", "pretrained": True}, "backbone.name=nobody/nothing is not on this machine"),
        ({"name": "gpt2", "pretrained": True}, "backbone.pretrained=PATH"),
        ({"name": "gpt2", "pretrained": True, "layers": 2}, "the weights of gpt2 have layers=12"),
        ({"name": "./nowhere"}, "no config.json is there"),
        ({"name": ""}, "backbone.name is empty"),
        ({"name": "gpt2", "pretrained": "nowhere.safetensors"}, "nowhere.safetensors: no such file"),
        ({"name": "gpt2", "pretrained": "nowhere"}, "nowhere: no such file"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_at_once(options, message, offline):
    started = time.perf_counter()
    assert message in refusal(Transformers(**options).build_language_model)
    assert time.perf_counter() - started < 5  # the hub's libraries would try for half a minute


def test_no_network_costs_no_time(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    started = time.perf_counter()
    for ask in (Transformers(name="nobody/nothing").configuration, lambda: load_tokenizer("nobody/nothing"),
                Transformers(name="gpt2", pretrained=True).build_language_model):  # fmt: skip
        assert "cannot be had from the hub" in refusal(ask)
    assert time.perf_counter() - started < 8


# ------------------------------------------------------------------------------------------ checkpointing


def test_checkpointing_is_asked_for_by_its_present_name(monkeypatch):
    def deprecated(*args: Any, **options: Any) -> None:
        raise AssertionError("the library warns of this one")

    monkeypatch.setattr(transformers.PreTrainedModel, "gradient_checkpointing_enable", deprecated)
    model = tiny(gradient_checkpointing=True)
    assert all(block.gradient_checkpointing for block in model.transformer.h)


def block_states(model: nn.Module) -> dict[int, bool]:
    """Whether what a block gives is part of the graph."""
    seen: dict[int, bool] = {}
    for place, block in enumerate(model.transformer.h):
        block.register_forward_hook(lambda module, inputs, output, place=place: seen.update(
            {place: (output[0] if isinstance(output, tuple) else output).requires_grad}))  # fmt: skip
    return seen


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointing_changes_no_gradient_and_opens_nothing_below_the_adapter(dropout):
    gradients, states = [], []
    for checkpointing in (False, True):
        model = tiny(layers=3, gradient_checkpointing=checkpointing, options={"resid_pdrop": dropout})
        adapter = LoRA(rank=2, base="frozen")
        adapter.attach(model, Placement(pattern=r"h\.[12]\..*c_attn"))
        torch.manual_seed(1)
        adapter.begin_task(0)
        for _, delta in adapter.open_deltas():
            nn.init.normal_(delta.B)
        states.append(block_states(model))
        saved: list[int] = []
        torch.manual_seed(2)
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda item, saved=saved: saved.append(item.numel()) or item, lambda item: item
        )
        with hooks:
            model.train()
            loss = model(ids(2, 9)).logits.square().mean()
        loss.backward()
        gradients.append([delta.A.grad for _, delta in adapter.open_deltas()] + [sum(saved)])
        assert {item.grad is None for name, item in model.named_parameters() if "deltas" not in name} == {True}
    assert states == [{0: False, 1: True, 2: True}] * 2
    for plain, kept in zip(gradients[0][:-1], gradients[1][:-1], strict=True):
        torch.testing.assert_close(kept, plain, rtol=1e-6, atol=1e-9)
        assert float(plain.abs().max()) > 0
    assert gradients[1][-1] < gradients[0][-1] / 2  # it does save memory


# ----------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("placement", ["linears", "qkv"])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_base_in_half_precision_learns_through_factors_in_full(name, placement, autocast):
    model = tiny(name, dtype="bfloat16")
    adapter = LoRA(rank=4, base="frozen")
    adapter.attach(model, placement)
    adapter.begin_task(0)
    trained = [item for item in model.parameters() if item.requires_grad]
    assert {item.dtype for item in trained} == {torch.float32}
    base = {id(item): item.detach().clone() for item in model.parameters() if not item.requires_grad}
    assert {item.dtype for item in base.values()} == {torch.bfloat16}
    optimizer, x, losses = torch.optim.AdamW(trained, lr=1e-2), ids(4, 12), []
    model.eval()  # without dropout the loss has to fall
    for _ in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = functional.cross_entropy(model(x).logits[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3
    whole = model(x).logits
    adapter.merge()
    assert (model(x).logits - whole).abs().max() < 0.1 * whole.abs().max()
    adapter.unmerge()
    assert all(torch.equal(item, base[id(item)]) for item in model.parameters() if id(item) in base)
    assert torch.equal(model(x).logits, whole)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "fused-linear", "fused-conv1d"])
def test_a_small_delta_does_not_drown_in_a_weight_of_few_bits(kind, autocast):
    """Base weights in pairs w, -w answer 0 to equal pairs of inputs; W + DeltaW rounded to 8 bits would be W."""
    torch.manual_seed(0)
    fused, columns = kind.startswith("fused"), 64
    half = torch.randn(24, columns // 2).sign()
    weight = torch.stack([half, -half], 2).flatten(1)
    layer = Conv1D(24, columns) if "conv1d" in kind else nn.Linear(columns, 24)
    if fused:
        layer = Conv1D(3 * columns, columns) if "conv1d" in kind else nn.Linear(columns, 3 * columns)
        weight = weight.repeat(8, 1)
    layer.weight.data = weight.t().contiguous() if "conv1d" in kind else weight.clone()
    layer.bias.data.zero_()
    model = nn.Sequential()
    model.add_module("qkv" if fused else "fc", layer)
    model = model.to(torch.bfloat16)
    adapter = LoRA(rank=2, base="frozen")
    adapter.attach(model, Placement(roles=["q", "v"]) if fused else "all")
    adapter.begin_task(0)
    expected = torch.zeros(1, weight.shape[0])
    x = torch.randn(1, columns // 2).repeat_interleave(2, 1).to(torch.bfloat16)
    for name, (site, delta) in adapter.deltas_of(0).items():
        nn.init.normal_(delta.B, std=3e-4)
        rows = {"q": slice(0, columns), "v": slice(2 * columns, None)}.get(name[-1] if fused else "", slice(None))
        expected[:, rows] = x.float() @ delta().detach().t()
        assert torch.equal((site.base_weight + delta()).to(torch.bfloat16), site.base_weight)  # it would drown
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = model(x).float()
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize("compute", ["merged", "two_path"])
def test_merged_computation_over_a_half_base_has_gradients_of_its_own_type(compute):
    model = nn.Sequential(nn.Linear(6, 5)).to(torch.bfloat16)
    twin = copy.deepcopy(model).float()
    for network in (model, twin):
        adapter = LoRA(rank=2, base="frozen", compute=compute)
        torch.manual_seed(0)
        adapter.attach(network)
        adapter.begin_task(0)
        _, delta = adapter.deltas_of(0)["0"]
        nn.init.normal_(delta.B)
        network(torch.ones(3, 6, dtype=network[0].bias.dtype)).float().sin().sum().backward()
    (ours,), (theirs,) = (network[0].deltas.values() for network in (model, twin))
    assert ours.A.grad.dtype == torch.float32
    torch.testing.assert_close(ours.A.grad, theirs.A.grad, rtol=0.1, atol=0.1)


def test_codyra_rounds_once_into_a_half_base_and_says_what_arrived():
    model = tiny(dtype="bfloat16")
    adapter = CoDyRA(rank=4, base="frozen")
    adapter.attach(model, "qkvo_mlp")
    adapter.begin_task(0)
    start = {name: site.base_weight.detach().float() for name, (site, _) in adapter.deltas_of(0).items()}
    wanted = {}
    for name, (site, delta) in adapter.deltas_of(0).items():
        assert delta.g.dtype == torch.float32
        nn.init.normal_(delta.B, std=0.05)
        wanted[name] = (site.base_weight.float() + delta()).to(torch.bfloat16)
    adapter.end_task()
    moved = 0.0
    for row in adapter.layer_report(0):
        site = adapter._site(row.name, 0)
        assert site.base_weight.dtype == torch.bfloat16 and torch.equal(site.base_weight, wanted[row.name])
        difference = (site.base_weight.float() - start[row.name]).norm()
        assert row.delta_norm == pytest.approx(float(difference), rel=1e-6) and row.delta_norm > 0
        moved += row.delta_norm**2
    assert adapter.drift() == pytest.approx(moved**0.5)


# ------------------------------------------------------------------------------------------------ weights


def language_network(model: nn.Module, adapter: Any = None, placement: Any = "linears") -> LanguageNetwork:
    """The model as a run has it, its adapter in the middle of a task."""
    network = LanguageNetwork(model, n_tasks=1, task_labels=False, pretrained=True)
    network.adapter = adapter or NoAdapter()
    network.adapter.attach(network, placement)
    network.adapter.begin_task(0)
    if adapter is not None:
        for _, delta in adapter.open_deltas():
            nn.init.normal_(delta.B, std=0.3)
    return network.eval()


@pytest.mark.parametrize("place", ["weights.safetensors", "folder"])
@pytest.mark.parametrize("adapter", [LoRA, CoDyRA, None])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_a_run_exports_the_next_one_starts_from(name, adapter, place, tmp_path):
    network = language_network(tiny(name), adapter and adapter(rank=3))
    record_tokenizer(network.backbone, ByteTokenizer())
    x = ids(2, 7)
    with torch.no_grad():
        own = network.backbone(x).logits
        network.adapter.merge()
        merged = network.backbone(x).logits
        network.adapter.unmerge()
    torch.testing.assert_close(merged, own, rtol=0, atol=1e-3)
    path = save_weights(network, tmp_path / "deep" / place)
    recipe = Transformers(name=name, pretrained=str(path))  # layers, width and vocabulary are in the file
    again = recipe.build_language_model().eval()
    assert torch.equal(again(x).logits, merged)
    assert recipe.read_tokenizer().name == "bytes"
    assert recipe.positions() == network.backbone.config.max_position_embeddings
    recipe.check_tokenizer(ByteTokenizer())
    second = save_weights(language_network(again), tmp_path / "second.safetensors")
    third = Transformers(name=name, pretrained=str(second), dtype="bfloat16").build_language_model()
    assert third.metadata["tokenizer"] == "bytes" and third.dtype == torch.bfloat16
    if path.is_dir():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
        assert torch.equal(theirs(x).logits, merged) and theirs.config.use_cache
    file = path / "model.safetensors" if path.is_dir() else path
    state = load_file(file)
    assert ("lm_head.weight" in state) == (name == "llama")  # GPT-2's is its embedding
    assert not [key for key in state if "delta" in key]


def test_pretrained_folders_are_read_whatever_they_were_saved_by(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "theirs")
    x = ids(1, 5)
    expected = model.eval()(x).logits
    for options in ({"name": "llama", "pretrained": str(tmp_path / "theirs")}, {"name": str(tmp_path / "theirs"),
                    "pretrained": True}):  # fmt: skip
        assert torch.equal(Transformers(**options).build_language_model().eval()(x).logits, expected)
    fresh = Transformers(name=str(tmp_path / "theirs")).build_language_model().eval()
    assert not torch.equal(fresh(x).logits, expected) and fresh.config.hidden_size == 32
    with torch.device("meta"):
        plan = Transformers(name="llama", pretrained=str(tmp_path / "theirs")).build_language_model(load_weights=False)
    assert plan.config.hidden_size == 32


def test_weights_that_bring_their_configuration_need_no_name(tmp_path, offline):
    network = language_network(tiny())
    record_tokenizer(network.backbone, ByteTokenizer())
    x = ids(1, 5)
    for place in ("folder", "weights.safetensors"):
        path = save_weights(network, tmp_path / place)
        recipe = Transformers(pretrained=str(path))
        assert torch.equal(recipe.build_language_model().eval()(x).logits, network.backbone(x).logits)
        assert recipe.read_tokenizer().name == "bytes" and recipe.positions() == 1024
        recipe.check_tokenizer(recipe.read_tokenizer())
        with torch.device("meta"):
            assert recipe.build_language_model(load_weights=False).config.hidden_size == 32
        assert f"the weights of {path} have layers=2" in refusal(Transformers(pretrained=str(path), layers=3).positions)
    assert "backbone.name is empty" in refusal(Transformers(pretrained=True).build_language_model)
    bare = tmp_path / "bare.safetensors"
    save_file({"a": torch.zeros(1)}, bare)
    message = refusal(Transformers(pretrained=str(bare)).build_language_model)
    assert f"{bare} does not say what network it is of, and backbone.name is empty" in message


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    file = save_weights(language_network(tiny()), tmp_path / "weights.safetensors")

    def build(**options: Any) -> Any:
        return Transformers(**{"name": "gpt2", "pretrained": str(file)} | options).build_language_model

    assert "holds a gpt2, and backbone.name=llama is a llama" in refusal(build(name="llama"))
    assert "backbone.layers=3: the weights of" in refusal(build(layers=3))
    assert "have width=32" in refusal(build(width=64)) and "have vocab_size=259" in refusal(build(vocab_size=300))
    shapes = refusal(build(options={"n_inner": 40}))
    assert "transformer.h.0.mlp.c_fc.weight is 32x128 in the file and 32x40 in the network" in shapes
    assert build(layers=2, width=32, vocab_size=259)() is not None  # saying it again is no contradiction
    state = load_file(file)
    bare = tmp_path / "bare.safetensors"  # no configuration in it: that of the name, in the size asked for
    save_file(state, bare)
    assert build(pretrained=str(bare), **TINY, vocab_size=259)() is not None
    assert "is 96 in the file and 2304 in the network" in refusal(build(pretrained=str(bare)))
    renamed = {name.replace("h.1.ln_1.bias", "h.1.ln_9.bias"): item for name, item in state.items()}
    save_file(renamed, bare)
    found = refusal(build(pretrained=str(bare), **TINY, vocab_size=259))
    assert "missing transformer.h.1.ln_1.bias; unexpected transformer.h.1.ln_9.bias" in found
    file.write_bytes(file.read_bytes()[:-50])
    assert "cannot be read as weights" in refusal(build())
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    assert "an adapter of PEFT" in refusal(build(pretrained=str(tmp_path / "peft")))
    (tmp_path / "peft" / "adapter_config.json").unlink()
    (tmp_path / "peft" / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.py"}}')
    assert "model_type mine" in refusal(build(name="gpt2", pretrained=str(tmp_path / "peft")))


def test_what_cannot_be_exported_is_refused_before_the_work(tmp_path):
    network = language_network(tiny())
    assert "or a folder without an ending" in refusal(lambda: check_export(tmp_path / "weights.pt", network))
    (tmp_path / "file").write_text("")
    assert "cannot make its folder" in refusal(lambda: check_export(tmp_path / "file", network))
    network.adapter = SimpleNamespace(per_task=True, label="convlora")
    assert "a set of weights for every task" in refusal(lambda: check_export(tmp_path / "folder", network))


# ---------------------------------------------------------------------------------------------- tokenizers

TEXTS = ["It's a  film ,\n\n well: made n't .", "Zürich — 東京 🎬", " leading and trailing ", "x"]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    """A folder with GPT-2's three files, of a vocabulary of 300."""
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS * 9 + ["the film was the best film"] * 9, vocab_size=300, min_frequency=2,
                                  special_tokens=["<|endoftext|>"], show_progress=False)  # fmt: skip
    tokenizer.save_model(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def some_files(source: Path, target: Path, *names: str) -> str:
    target.mkdir()
    for name in names:
        (target / name).write_bytes((source / name).read_bytes())
    return str(target)


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt", "tokenizer.json"), ("tokenizer.json",),
                                   ("vocab.json", "merges.txt")], ids=len)  # fmt: skip
def test_a_folder_with_gpt2s_files_is_a_tokenizer(names, bpe, tmp_path, offline):
    tokenizer = load_tokenizer(some_files(bpe, tmp_path / "tokenizer", *names))
    reference = tokenizers.ByteLevelBPETokenizer.from_file(str(bpe / "vocab.json"), str(bpe / "merges.txt"))
    assert tokenizer.encode(TEXTS) == [reference.encode(text).ids for text in TEXTS]
    assert [tokenizer.decode(item) for item in tokenizer.encode(TEXTS)] == TEXTS  # every space and accent
    eos = reference.token_to_id("<|endoftext|>")
    assert (tokenizer.eos, tokenizer.pad, tokenizer.start) == (eos, eos, ())
    assert tokenizer.vocabulary == reference.get_vocab_size() and tokenizer.encode([]) == []
    assert tokenizer.decode([eos, *tokenizer.encode(["x"])[0], eos, eos]) == "x"


def test_a_fingerprint_is_of_the_content_wherever_it_lies(bpe, tmp_path):
    first = load_tokenizer(str(bpe))
    moved = load_tokenizer(some_files(bpe, tmp_path / "moved", "vocab.json", "merges.txt", "tokenizer.json"))
    assert first.fingerprint == moved.fingerprint
    first.encode(["padding and truncation of a call are no part of it"])
    assert load_tokenizer(str(bpe)).fingerprint == first.fingerprint
    content = json.loads((bpe / "tokenizer.json").read_text())
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "moved" / "tokenizer.json").write_text(json.dumps(content | {"truncation": cut}))
    cutting = load_tokenizer(str(tmp_path / "moved"))
    assert cutting.encode(TEXTS) == first.encode(TEXTS) and cutting.fingerprint == first.fingerprint
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (tmp_path / "moved" / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(str(tmp_path / "moved")).fingerprint != first.fingerprint


def test_decoding_changes_no_space():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, ".": 1, "</s>": 2}, "a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", clean_up_tokenization_spaces=True
    )
    tokenizer = LibraryTokenizer(whole, "mine", "backbone.tokenizer=mine")
    assert whole.decode([0, 1]) == "a." and tokenizer.decode([0, 1, 2]) == "a ."


def test_what_a_tokenizer_puts_in_front_stands_before_every_text():
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "<unk>": 3}, "<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer = LibraryTokenizer(whole, "mine", "backbone.tokenizer=mine")
    assert (tokenizer.start, tokenizer.eos, tokenizer.pad, tokenizer.vocabulary) == ((0,), 1, 1, 4)
    assert tokenizer.encode(["a a", "a"]) == [[2, 2], [2]]
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
    assert LibraryTokenizer(whole, "mine", "x").eos == 1  # known by its usual name
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=bare)
    assert "no token that ends a text" in refusal(lambda: LibraryTokenizer(whole, "mine", "backbone.tokenizer=mine"))


def test_bytes_are_numbered_as_by_byt5():
    ours, theirs = load_tokenizer("bytes"), transformers.ByT5Tokenizer(extra_ids=0)
    assert ours.encode(TEXTS) == [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [ours.decode(item) for item in ours.encode(TEXTS)] == TEXTS
    assert (
        (ours.pad, ours.eos, ours.vocabulary) == (theirs.pad_token_id, theirs.eos_token_id, len(theirs)) == (0, 1, 259)
    )
    assert ours.decode([0, *ours.encode(["ü"])[0][:1], 1]) == "\ufffd"
    assert ours.encode(["</s>", "\ud800"]) == [[63, 50, 118, 65], [66]]  # a text is text


def test_a_tokenizer_has_to_match_the_model(bpe, tmp_path):
    other = load_tokenizer(str(bpe))
    message = refusal(lambda: Transformers(name="gpt2", vocab_size=259).check_tokenizer(other))
    assert "a tokenizer that does not match the model" in message and "backbone.vocab_size=300" in message
    Transformers(name="gpt2", vocab_size=300).check_tokenizer(other)
    Transformers(name="gpt2").check_tokenizer(ByteTokenizer())  # random weights learn any ids below theirs
    message = refusal(lambda: Transformers(name="gpt2", pretrained=True).check_tokenizer(ByteTokenizer()))
    assert "259 tokens" in message and "50257" in message
    network = language_network(tiny(vocab_size=300))
    record_tokenizer(network.backbone, other)
    file = save_weights(network, tmp_path / "weights.safetensors")
    trained = Transformers(name="gpt2", pretrained=str(file), tokenizer=str(bpe))
    trained.check_tokenizer(trained.read_tokenizer())
    message = refusal(lambda: trained.check_tokenizer(ByteTokenizer()))
    assert f"{file} was trained with another one, '{bpe.name}' (fingerprint {other.fingerprint[:12]}" in message


def test_files_name_a_tokenizers_folder_and_not_where_it_lies(bpe, tmp_path, offline):
    network = language_network(tiny(vocab_size=300))
    record_tokenizer(network.backbone, load_tokenizer(str(bpe)))
    first = save_weights(network, tmp_path / "weights.safetensors")
    again = Transformers(pretrained=str(first), tokenizer=str(bpe)).build_language_model()  # carried on
    for path in (first, save_weights(language_network(again), tmp_path / "second.safetensors")):
        with safe_open(path, "pt") as file:
            recorded = file.metadata()
        assert str(bpe.parent) not in json.dumps(recorded)
        assert recorded["tokenizer"] == bpe.name
        message = refusal(Transformers(name="gpt2", pretrained=str(path)).read_tokenizer)
        assert f"{path} was trained with the tokenizer of a folder '{bpe.name}'" in message
        assert recorded["tokenizer_fingerprint"][:12] in message and f"backbone.tokenizer=PATH/{bpe.name}" in message
    moved = some_files(bpe, tmp_path / "elsewhere", "tokenizer.json")
    recipe = Transformers(pretrained=str(first), tokenizer=moved)
    recipe.check_tokenizer(recipe.read_tokenizer())  # the fingerprint decides, whatever the folder's name
    record_tokenizer(network.backbone, ByteTokenizer())
    assert Transformers(pretrained=str(save_weights(network, first))).read_tokenizer().name == "bytes"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("gpt2", "backbone.tokenizer=bytes, which needs no file"),
        ("./nowhere", "no such folder"),
        ("empty", "cannot be read as a tokenizer"),
        ("damaged", "cannot be read as a tokenizer"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_refused(choice, message, tmp_path, monkeypatch, offline):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "damaged"):
        (tmp_path / folder).mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    found = refusal(lambda: load_tokenizer(choice))
    assert message in found and found.startswith(f"backbone.tokenizer={choice}")
    assert "brings no tokenizer" in refusal(Transformers(name="llama").read_tokenizer)


def test_the_placement_of_an_untied_head_is_by_its_own_name():
    llama, gpt2 = tiny("llama"), tiny()
    for model in (llama, gpt2):
        assert "lm_head" not in Placement.of("linears").choose(model)
    assert Placement(head=True, names=["lm_head"]).choose(llama) == ["lm_head"]
    assert "lm_head" in Placement(head=True).choose(llama)
    assert "no layer 'lm_head'" in refusal(lambda: Placement(names=["lm_head"]).choose(llama))
    shared = refusal(lambda: DyLoRA(base="frozen").attach(gpt2, Placement(head=True)))
    assert "'lm_head' shares its weight with 'transformer.wte'" in shared
