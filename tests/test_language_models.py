"""Families of language models: what each does besides GPT-2, and how a plan counts it."""

from __future__ import annotations

from typing import Any

import builders  # noqa: F401  (one thread)
import pytest
import torch
import transformers
from test_generation import by_hand
from test_transformers import ids, refusal
from torch import Tensor, nn

from cl_runner.backbones.generation import greedy
from cl_runner.backbones.language import LanguageNetwork
from cl_runner.backbones.language_weights import longest_sequence, vocabulary_of
from cl_runner.backbones.transformers import Transformers
from cl_runner.training.account import forward_flops

SMALL = {"layers": 2, "width": 64, "tokenizer": "bytes"}
RWKV = {"name": "rwkv", "layers": 2, "tokenizer": "bytes",
        "options": {"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 64}}  # fmt: skip
MAMBA = {"name": "mamba", "layers": 2, "tokenizer": "bytes",
         "options": {"hidden_size": 32, "state_size": 4, "intermediate_size": 64}}  # fmt: skip


def built(device: str = "cpu", **options: Any) -> Any:
    """A random model of a kind, small enough to run."""
    torch.manual_seed(0)
    with torch.device(device):
        return Transformers(**SMALL | options if "width" not in options else options).build_language_model()


def routed(model: nn.Module) -> LanguageNetwork:
    return LanguageNetwork(model, n_tasks=1, task_labels=False, pretrained=False)


def louder(model: nn.Module, times: float = 4.0) -> Any:
    """Weights large enough that answers differ; stands for training."""
    with torch.no_grad():
        for item in model.parameters():
            if item.dim() > 1:
                item.mul_(times)
    return model.eval()


def marked(*shape: int) -> Tensor:
    """Ids and marks (B, 2, L), two positions of three counting."""
    x = ids(*shape)
    return torch.stack([x, (torch.arange(shape[1]).expand(shape) % 3 > 0).long()], 1)


# ------------------------------------------------------------------------------------------------ their logits


@pytest.mark.parametrize(
    ("options", "short"),
    [
        ({"name": "gpt2"}, True),
        ({"name": "llama"}, True),
        ({"name": "opt"}, True),
        ({"name": "gemma2"}, False),  # a soft cap at 30
        ({"name": "gemma2", "options": {"final_logit_softcapping": None}}, True),
        ({"name": "gemma2", "dtype": "bfloat16"}, False),
        ({"name": "llama", "dtype": "bfloat16"}, True),
        ({"name": "nanochat"}, False),  # one at 15
        ({"name": "cohere"}, False),  # scales its logits
        ({"name": "granite", "options": {"logits_scaling": 7.0}}, False),  # divides them
        ({"name": "minicpm3"}, False),  # scales the states before the output layer
    ],
    ids=str,
)
def test_logits_are_the_models_own_fresh_and_trained(options, short):
    model = built(**options)
    network, x = routed(model).train(), marked(3, 9)
    for trained in (False, True):  # decided on the fresh model, whose logits are next to nothing
        network.eval()
        with torch.no_grad():
            found, own = network(x), model(input_ids=x[:, 0]).logits[x[:, 1].bool()].float()
        assert float(own.abs().max()) > (20 if trained and options["name"] == "gemma2" and not short else 0)
        torch.testing.assert_close(found, own, rtol=1e-3 if model.dtype == torch.float32 else 2e-2, atol=1e-6)
        louder(model, 60) if not trained else None
    assert network._short is short
    seen: list[int] = []
    model.get_output_embeddings().register_forward_pre_hook(
        lambda module, given: seen.append(given[0].shape[:-1].numel())
    )
    network(x)
    assert seen == [int(x[:, 1].sum()) if short else x[:, 1].numel()]


def test_what_is_tried_leaves_modes_hooks_and_the_generator_as_they_were():
    model = built(name="gpt2")
    network = routed(model).train()
    model.transformer.h[0].eval()
    modes, state = [item.training for item in network.modules()], torch.get_rng_state()
    network.settle(marked(1, 5))
    assert network._short is True and [item.training for item in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state) and not model.lm_head._forward_pre_hooks


class Undivided(transformers.GPT2LMHeadModel):
    """As models of several parts are: nothing below the output layer is a model of its own."""

    base_model_prefix = ""


class Unlayered(transformers.GPT2LMHeadModel):
    """The output layer's weight without the layer."""

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        hidden = self.transformer(input_ids, **options).last_hidden_state
        return transformers.modeling_outputs.CausalLMOutput(logits=hidden @ self.lm_head.weight.T)


@pytest.mark.parametrize("kind", [Undivided, Unlayered])
def test_a_model_without_parts_goes_the_long_way(kind):
    torch.manual_seed(0)
    model = kind(transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=259, n_positions=32))
    network, x = routed(model).eval(), marked(2, 7)
    torch.testing.assert_close(network(x), model(input_ids=x[:, 0]).logits[x[:, 1].bool()])
    assert network._short is False


# -------------------------------------------------------------------------------------------------- operations

LENGTH, WIDTH, VOCABULARY, LAYERS = 16, 64, 259, 2
ATTENTION = LAYERS * 4 * LENGTH**2 * WIDTH  # scores, and values weighted by them
HEAD = 2 * LENGTH * WIDTH * VOCABULARY
DENSE = LAYERS * 2 * LENGTH * 12 * WIDTH**2 + ATTENTION + HEAD  # four projections and an MLP of four times the width


def of_mixtral(heads: int, size: int, shared: int, inner: int, experts: int, chosen: int) -> int:
    """Two layers of width 64: projections, the router, and of the experts those that a token is sent to."""
    projections = 2 * WIDTH * size * (heads + shared)
    block = projections + WIDTH * experts + chosen * 3 * WIDTH * inner
    return LAYERS * (2 * LENGTH * block + 4 * LENGTH**2 * heads * size) + HEAD


EXPERTS = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}  # heads of 16
COUNTED = [
    *(({"name": name}, DENSE) for name in ("gpt2", "opt", "bloom", "openai-gpt", "gpt_neox", "xglm")),
    ({"name": "gemma2", "layers": 1}, None),
    ({"name": "mixtral", "options": EXPERTS | {"num_local_experts": 4}}, of_mixtral(4, 16, 2, 48, 4, 2)),
    ({"name": "qwen3_moe", "options": EXPERTS | {"num_experts": 6, "num_experts_per_tok": 3,
      "moe_intermediate_size": 40}}, of_mixtral(4, 16, 2, 40, 6, 3)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"), COUNTED, ids=lambda item: item["name"] if isinstance(item, dict) else ""
)
def test_a_plan_counts_what_a_run_computes(options, expected):
    x = torch.stack([ids(1, LENGTH), torch.ones(1, LENGTH, dtype=torch.long)], 1)
    planned, network = routed(built("meta", **options)).train(), routed(built(**options)).train()
    counts = [forward_flops(planned, x), forward_flops(network, x), forward_flops(network, x)]
    assert len(set(counts)) == 1  # neither does the first one count what is only tried
    assert expected in (None, counts[0])
    assert planned.training and network.training


@pytest.mark.parametrize("options", [RWKV, MAMBA], ids=["rwkv", "mamba"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_recurrences_are_not_counted_as_nothing(options, device):
    assert forward_flops(routed(built(device, width=None, **options)), marked(1, 8)) is None


def test_what_depends_on_values_is_not_known_without_them():
    options = {"name": "jetmoe", "options": {"num_local_experts": 2, "intermediate_size": 32}}
    x = marked(1, 8)
    assert forward_flops(routed(built("meta", **options)), x) is None
    assert forward_flops(routed(built(**options)), x) > 0


def test_an_error_of_a_network_in_a_run_is_no_unknown():
    network, x = routed(built(name="gpt2")), marked(1, 8)
    network.settle(x)
    network.backbone.lm_head = nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        forward_flops(network, x)


@pytest.mark.parametrize("name", ["gptj", "deepseek_v3"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_size_in_which_nothing_fits_is_refused_by_a_plan_too(name, device):
    message = refusal(lambda: built(device, name=name, layers=1, width=32, tokenizer="bytes"))
    assert message.startswith(f"backbone.name={name} cannot read token ids alone") and "backbone.layers" in message


# ---------------------------------------------------------------------------------------- models of several parts


def test_the_part_that_reads_text_has_the_size_and_the_vocabulary():
    recipe = Transformers(name="gemma3", layers=2, width=64, tokenizer="bytes",
                          options={"final_logit_softcapping": 20.0, "mm_tokens_per_image": 4})  # fmt: skip
    config = recipe.configuration()
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (2, 64)
    assert (config.text_config.final_logit_softcapping, config.mm_tokens_per_image) == (20.0, 4)
    assert config.vision_config.hidden_size == Transformers(name="gemma3").configuration().vision_config.hidden_size
    assert vocabulary_of(config) == 259 and recipe.positions() == config.text_config.max_position_embeddings
    assert vocabulary_of(Transformers(name="gemma3").configuration()) == 262208
    with torch.device("meta"):
        model = recipe.build_language_model(load_weights=False)
    assert vocabulary_of(model) == model.get_input_embeddings().num_embeddings == 259
    unknown = Transformers(name="gemma3", options={"final_softcap": 1})
    assert "backbone.options.final_softcap: the configuration of gemma3" in refusal(unknown.configuration)


def test_a_model_of_several_parts_runs_on_texts_alone():
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    given = {"vision_config": vision | {"image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4}
    model = built(name="gemma3", options=given)
    network, x = routed(louder(model)), marked(2, 7)
    network.train()
    network(x).sum().backward()
    network.eval()
    torch.testing.assert_close(network(x), model(input_ids=x[:, 0]).logits[x[:, 1].bool()])
    prompts = [ids(4), ids(6)]
    assert network.generate(prompts, most=3, eos=999, pad=0) == [by_hand(model, item, 3, 999, 99) for item in prompts]
    reached = {name.split(".")[1] for name, item in model.named_parameters() if item.grad is not None}
    assert reached == {"language_model"}


# ----------------------------------------------------------------------------------------------------- answers

PROMPTS = [ids(length, seed=length) for length in (3, 9, 5, 9)]


def in_words_of_rwkv() -> Any:
    return louder(built(width=None, **RWKV))


def of_roberta() -> Any:
    """It counts positions from behind its padding, which generation in the library does not."""
    torch.manual_seed(0)
    config = transformers.RobertaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=259,
                                        intermediate_size=48, max_position_embeddings=64, is_decoder=True)  # fmt: skip
    return louder(transformers.RobertaForCausalLM(config), 8)


def without_attention() -> Any:
    """Of a kind whose library code for generation asks for a layer of attention."""
    return louder(built(name="jamba", options={"num_experts": 2}))


FAMILIES = {
    "gpt2": (lambda: louder(built(name="gpt2")), 1),
    "bloom": (lambda: louder(built(name="bloom")), 1),
    "mamba": (lambda: louder(built(width=None, **MAMBA)), 1),
    "rwkv": (in_words_of_rwkv, len(PROMPTS)),
    "trocr": (lambda: louder(built(name="trocr", options={"vocab_size": 300}, tokenizer=None)), len(PROMPTS)),
    "roberta": (of_roberta, 0),
    "jamba": (without_attention, 0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_it_does_token_by_token(family, monkeypatch):
    make, calls = FAMILIES[family]
    model = make()
    expected = [by_hand(model, prompt, 6, 999, 60) for prompt in PROMPTS]
    assert len({tuple(item) for item in expected}) == 3  # two prompts are one
    asked: list[int] = []
    whole = type(model).generate

    def generate(self: Any, input_ids: Tensor, **options: Any) -> Any:
        asked.append(len(input_ids))
        return whole(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "generate", generate)
    assert greedy(model, PROMPTS, most=6, eos=999, pad=0) == expected
    eos = expected[0][2]
    cut = [item[: item.index(eos)] if eos in item else item for item in expected]
    asked.clear()
    assert greedy(model, PROMPTS, most=6, eos=eos, pad=0) == cut
    assert len(asked) == calls and sum(asked) in (0, len(PROMPTS))  # together, alone, or without the library


def test_trying_a_model_costs_a_few_short_passes_and_only_once():
    model = built(name="gpt2")
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda module, given, named: read.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    greedy(model, PROMPTS, most=1, eos=999, pad=0)
    assert len(read) <= 1 + 4 and max(read[:-1]) <= 7
    read.clear()
    greedy(model, PROMPTS, most=1, eos=999, pad=0)
    assert len(read) == 1


def test_a_robertas_positions_begin_behind_its_padding():
    model = of_roberta()
    assert longest_sequence(model.config) == 62
    assert model(ids(1, 62)).logits.shape == (1, 62, 259)
    with pytest.raises((IndexError, RuntimeError)):
        model(ids(1, 63))
    assert [len(item) for item in greedy(model, [ids(58)], most=9, eos=999, pad=0)] == [4]
