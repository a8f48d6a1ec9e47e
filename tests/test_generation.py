"""Greedy answers: the same as token by token without a cache, whatever else is in the batch."""

from __future__ import annotations

import builders  # noqa: F401  (one thread)
import pytest
import torch
from test_transformers import ids, refusal, tiny
from torch import Tensor, nn

from cl_runner.adapters import LoRA
from cl_runner.backbones.generation import greedy

PROMPTS = [ids(length, seed=length) for length in (3, 9, 5, 1, 17)]


@torch.no_grad()
def by_hand(model: nn.Module, prompt: Tensor, most: int, eos: int, places: int) -> list[int]:
    """One prompt, one token at a time, the whole sequence every time."""
    model.eval()
    whole, answer = prompt.tolist(), []
    while len(answer) < most and len(whole) < places:
        token = int(model(torch.tensor([whole]), use_cache=False).logits[0, -1].argmax())
        if token == eos:
            break
        whole.append(token)
        answer.append(token)
    return answer


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "opt"])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_batch_gives_what_each_prompt_gives_alone(name, adapted):
    places = 20
    model = tiny(name, options={"max_position_embeddings": places})
    never = 999
    before = greedy(model, PROMPTS, most=8, eos=never, pad=0)
    if adapted:
        adapter = LoRA(rank=3, base="frozen")
        adapter.attach(model, "linears")
        adapter.begin_task(0)
        for _, delta in adapter.open_deltas():
            nn.init.normal_(delta.B, std=0.5)
    answers = greedy(model, PROMPTS, most=8, eos=never, pad=0)
    assert (answers == before) is not adapted
    assert [len(item) for item in answers] == [8, 8, 8, 8, 3]  # 17 of 20 positions are the prompt's
    assert answers == [greedy(model, [prompt], most=8, eos=never, pad=0)[0] for prompt in PROMPTS]
    assert answers == [by_hand(model, prompt, 8, never, places) for prompt in PROMPTS]
    assert len({tuple(item) for item in answers}) == len(answers)


@pytest.mark.parametrize("pad", [0, 200])
def test_an_answer_ends_before_its_end_token(pad):
    model = tiny()
    free = greedy(model, PROMPTS, most=6, eos=1, pad=pad)
    assert free == greedy(model, PROMPTS, most=6, eos=1, pad=0)  # what fills up is masked
    eos = free[0][2]
    cut = greedy(model, PROMPTS, most=6, eos=eos, pad=eos)  # as GPT-2 has it
    assert cut == [item[: item.index(eos)] if eos in item else item for item in free]
    assert len(cut[0]) == free[0].index(eos) <= 2
    assert greedy(model, PROMPTS, most=2, eos=1, pad=pad) == [item[:2] for item in free]
    assert greedy(model, [], most=2, eos=1, pad=pad) == []


def test_a_model_comes_back_as_it_was():
    model = tiny(options={"resid_pdrop": 0.5}, gradient_checkpointing=True)
    model.transformer.h[0].eval()
    own, modes = model.generation_config, [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = greedy(model, PROMPTS, most=4, eos=1, pad=0)
    assert first == greedy(model, PROMPTS, most=4, eos=1, pad=0)  # no dropout
    assert [module.training for module in model.modules()] == modes and model.generation_config is own
    assert torch.equal(torch.get_rng_state(), state) and model.config.use_cache is False


def test_prompts_without_room_are_refused():
    model = tiny(options={"n_positions": 8})
    message = refusal(lambda: greedy(model, [ids(3), ids(8)], most=4, eos=1, pad=0))
    assert "a prompt of 8 tokens leaves none of the model's 8 positions" in message
    assert "no token" in refusal(lambda: greedy(model, [ids(0)], most=4, eos=1, pad=0))
