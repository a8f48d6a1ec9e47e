"""Greedy answers of a causal language model, a batch of prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cl_runner.backbones.configurations import library, quiet
from cl_runner.errors import RequestError


@torch.no_grad()
def greedy(model: Any, prompts: Sequence[Tensor], *, most: int, eos: int, pad: int) -> list[list[int]]:
    """The most probable next token, again and again, with keys and values kept.

    Prompts are padded on the left and masked, and positions count from a prompt's own first token, so that an answer
    does not depend on what else is in the batch. An answer ends before it leaves the model's positions.

    Args:
        model: of transformers, with its adapter, on any device; its modes of training are given back as they were.
        prompts: token ids, one-dimensional, on any device, each at least one.
        most: tokens of the longest answer.
        eos: ends an answer.
        pad: fills up.

    Returns:
        The ids after each prompt, up to and without ``eos``.

    Raises:
        RequestError: a prompt has no token, or takes all of the model's positions.
    """
    places = _positions(model)
    lengths = [len(prompt) for prompt in prompts]
    for length in lengths:
        if length == 0:
            raise RequestError("a prompt has no token to go on from", "give every prompt some text")
        if places is not None and length >= places:
            raise RequestError(
                f"a prompt of {length} tokens leaves none of the model's {places} positions for an answer",
                "cut the prompts: benchmark.prompt_length",
            )
    room = [most if places is None else min(most, places - length) for length in lengths]
    answers: list[list[int]] = [[] for _ in prompts]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for longest in sorted(set(room) - {0}):  # in one batch all answers may become equally long
            chosen = [place for place, own in enumerate(room) if own == longest]
            found = _generate(model, [prompts[place] for place in chosen], longest, eos, pad)
            for place, answer in zip(chosen, found, strict=True):
                answers[place] = answer
    finally:
        for module, training in modes:
            module.training = training
    return answers


def _generate(model: Any, prompts: Sequence[Tensor], most: int, eos: int, pad: int) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    device = next(model.parameters()).device
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt.cpu()
        mask[row, width - len(prompt) :] = 1
    plan = library().GenerationConfig(
        max_new_tokens=most, do_sample=False, num_beams=1, use_cache=True, eos_token_id=eos, pad_token_id=pad
    )
    own, model.generation_config = model.generation_config, plan  # a model's own adds what nobody asked for
    try:
        with quiet():
            whole = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=plan)
    finally:
        model.generation_config = own
    rows = whole[:, width:].tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]


def _positions(model: Any) -> int | None:
    """The longest sequence of the model's configuration; None where it sets no limit."""
    config = model.config.get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
