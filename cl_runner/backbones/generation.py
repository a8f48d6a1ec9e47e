"""Greedy answers of a causal language model, a batch of prompts at a time where the model allows it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cl_runner.backbones.configurations import library, quiet
from cl_runner.backbones.language_weights import longest_sequence, vocabulary_of
from cl_runner.errors import RequestError

TRIED, STEPS = (2, 5), 2  # lengths of the prompts, and tokens of the answers, on which a model shows what it allows
ROUNDING = {True: 1e-2, False: 0.1}  # of the logits' range, in float32 and in fewer bits; real differences are larger


@torch.no_grad()
def greedy(model: Any, prompts: Sequence[Tensor], *, most: int, eos: int, pad: int) -> list[list[int]]:
    """The most probable next token, again and again.

    Prompts are padded on the left and masked, and positions count from a prompt's own first token, so that an answer
    does not depend on what else is in the batch. An answer ends before it leaves the model's positions.

    Keys and values are kept. Not every model computes with them, or beside padding, what it computes for the plain
    text: the first call tries it on two tiny prompts, and takes one prompt at a time, or no cache, where it has to.

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
    places = longest_sequence(model.config)
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
    with evaluating(model):
        for longest in sorted(set(room) - {0}):  # in one batch all answers may become equally long
            chosen = [place for place, own in enumerate(room) if own == longest]
            found = _way(model, places)(model, [prompts[place] for place in chosen], longest, eos, pad)
            for place, answer in zip(chosen, found, strict=True):
                answers[place] = answer[: answer.index(eos)] if eos in answer else answer
    return answers


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation, after which every module has the mode that it had before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# ------------------------------------------------------------------------------------------- ways to an answer


def _together(model: Any, prompts: Sequence[Tensor], most: int, eos: int | None, pad: int, logits: bool = False) -> Any:
    """All prompts in one batch, with keys and values kept."""
    width = max(len(prompt) for prompt in prompts)
    device = next(model.parameters()).device
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt.cpu()
        mask[row, width - len(prompt) :] = 1
    plan = library().GenerationConfig(
        max_new_tokens=most, do_sample=False, num_beams=1, use_cache=True, eos_token_id=eos, pad_token_id=pad,
        return_dict_in_generate=True, output_logits=logits,
    )  # fmt: skip
    own, model.generation_config = model.generation_config, plan  # a model's own adds what nobody asked for
    try:
        with quiet():
            found = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=plan)
    finally:
        model.generation_config = own
    rows = found.sequences[:, width:].tolist()
    return (rows, torch.stack(found.logits, 1)) if logits else rows


def _alone(model: Any, prompts: Sequence[Tensor], most: int, eos: int | None, pad: int, logits: bool = False) -> Any:
    """One prompt after the other, with keys and values kept."""
    found = [_together(model, [prompt], most, eos, pad, logits) for prompt in prompts]
    if logits:
        return [rows[0] for rows, _ in found], torch.cat([item for _, item in found])
    return [rows[0] for rows in found]


def _plainly(model: Any, prompts: Sequence[Tensor], most: int, eos: int | None, pad: int) -> Any:
    """One prompt after the other, the whole text again for every token: what a model answers by definition."""
    device, answers = next(model.parameters()).device, []
    for prompt in prompts:
        whole, answer = prompt.to(device), list[int]()
        while len(answer) < most and (not answer or answer[-1] != eos):
            token = model(input_ids=whole[None], use_cache=False).logits[0, -1].argmax()
            whole = torch.cat([whole, token[None]])
            answer.append(int(token))
        answers.append(answer)
    return answers


_FOUND: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()


def _way(model: Any, places: int | None) -> Callable[..., Any]:
    """The fastest way to the answers that a model has by definition; found out once.

    A way gives the ids after each prompt; the first two, where they are asked for, also the logits (B, steps,
    vocabulary) by which these were chosen.
    """
    if model not in _FOUND:
        room = places is None or places >= max(TRIED) + STEPS
        _FOUND[model] = next((way for way in (_together, _alone) if room and _holds(way, model)), _plainly)
    return _FOUND[model]


def _holds(way: Callable[..., Any], model: Any) -> bool:
    """Whether the logits behind some answers are those of the same texts read plainly."""
    vocabulary = vocabulary_of(model)
    prompts = [torch.arange(5, 5 + length) % vocabulary for length in TRIED]
    try:
        answers, logits = way(model, prompts, STEPS, None, 0, logits=True)
    except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # the library's generation does not know this model
    exact = model.dtype == torch.float32 and not torch.is_autocast_enabled(logits.device.type)
    for prompt, answer, found in zip(prompts, answers, logits.float(), strict=True):
        text = torch.cat([prompt, torch.tensor(answer)]).to(found.device)[None]
        expected = model(input_ids=text, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        allowed = ROUNDING[exact] * (expected.amax() - expected.amin())
        if not bool(((found - expected).abs() <= allowed).all()):
            return False
    return True
