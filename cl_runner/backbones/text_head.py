"""The classifier of a vision-language network: the similarity of an image to the prompts of the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

CHUNK = 256  # prompts encoded together where no gradient is needed

Tokenize = Callable[[Sequence[str]], Tensor]


class Candidates(NamedTuple):
    """Classes that can be chosen in training, their prompts' token ids, and whose each prompt is, by position."""

    classes: Tensor
    tokens: Tensor
    owners: Tensor


class TextHead(nn.Module):
    """Logits exp(s) * cos(image, class), where a class is the mean of its normalised prompt embeddings.

    Several prompts a class are averaged and normalised again, as CLIP's own zero-shot classifier does it. The
    embeddings of all classes are kept as long as no tensor of the text tower changes; where the text tower trains,
    those of the classes that a step needs are computed with a graph.

    Args:
        model: the network that holds the text tower and the logit scale; a reference, not a submodule.
        encode_tokens: (P, L) token ids to (P, d) embeddings, not normalised.
        text_parameters: gives the tensors that the embeddings depend on.
        tokenize: prompts to token ids (P, L), padded.
        trim: cuts columns of token ids off that change nothing.
        n_classes: of the stream and its probes.

    Attributes:
        per_task, own_classes: as of `Head`; one text tower answers for all tasks.
        follows_task: whether the embeddings depend on the active task, as with a set of adapters per task.
        aliases: (n_classes,), the first class whose prompts have the same tokens: classes that nothing can tell apart.
    """

    tokens: Tensor
    owners: Tensor
    aliases: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        encode_tokens: Callable[[Tensor], Tensor],
        text_parameters: Callable[[], Iterable[Tensor]],
        tokenize: Tokenize,
        trim: Callable[[Tensor], Tensor],
        n_classes: int,
    ) -> None:
        super().__init__()
        self.__dict__["model"] = model  # its towers belong to the backbone, not to the head
        self._encode_tokens, self._text_parameters = encode_tokens, text_parameters
        self._tokenize, self._trim = tokenize, trim
        self.n_classes = n_classes
        self.per_task = self.own_classes = False
        self.follows_task = False
        self.active = 0
        self.classifiers = nn.ModuleList()
        self._candidates: Candidates | None = None
        self.task_classes: list[list[int]] = []
        device = torch.get_default_device()
        self.register_buffer("tokens", torch.zeros(0, 1, dtype=torch.long, device=device), persistent=False)
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long, device=device), persistent=False)
        self.register_buffer("aliases", torch.arange(n_classes, device=device), persistent=False)
        self._kept: dict[Any, tuple[tuple[Any, ...], Tensor]] = {}

    def name_classes(self, prompts: Sequence[Sequence[str]]) -> None:
        """Gives every class its prompts.

        Args:
            prompts: of each class, one or several.
        """
        assert len(prompts) == self.n_classes, "every class needs its prompts"
        flat = [prompt for group in prompts for prompt in group]
        device = self.aliases.device
        self.tokens = self._tokenize(flat).to(device)
        self.owners = torch.tensor([index for index, group in enumerate(prompts) for _ in group], device=device)
        rows = iter(self.tokens.tolist())
        first: dict[tuple[tuple[int, ...], ...], int] = {}
        chosen = [first.setdefault(tuple(tuple(next(rows)) for _ in group), at) for at, group in enumerate(prompts)]
        self.aliases = torch.tensor(chosen, device=device)
        self._kept.clear()
        self.training_classes = self.training_classes  # now they have prompts

    @property
    def training_classes(self) -> Tensor | None:
        """The candidates in training; None: all, as at evaluation."""
        return None if self._candidates is None else self._candidates.classes

    @training_classes.setter
    def training_classes(self, classes: Tensor | None) -> None:
        """Chooses the prompts that a step encodes."""
        if classes is None:
            self._candidates = None
            return
        if not len(self.owners):  # a plan: nothing has a name
            self._candidates = Candidates(classes, self.tokens, self.owners)
            return
        place = torch.full((self.n_classes,), -1, device=classes.device)
        place[classes] = torch.arange(len(classes), device=classes.device)
        rows = place[self.owners] >= 0  # once a task: on a GPU this waits for the device
        self._candidates = Candidates(classes, self._trim(self.tokens[rows]), place[self.owners[rows]])

    @property
    def trains(self) -> bool:
        """Whether some of the text tower trains now."""
        return any(item.requires_grad for item in self._text_parameters())

    def scale(self) -> Tensor:
        """exp(logit scale), a number."""
        scale: Tensor = self.model.logit_scale.exp()  # type: ignore[union-attr, operator]
        return scale.float().squeeze()

    def text_features(self, classes: Tensor | None = None) -> Tensor:
        """The classes' embeddings (n, d), normalised; all classes where none are given."""
        if torch.is_grad_enabled() and self.trains:
            if self._candidates is not None and classes is self._candidates.classes:
                return self._encoded(self._candidates.tokens, self._candidates.owners, len(classes))
            whole = self._encoded(self.tokens, self.owners, self.n_classes)
            return whole if classes is None else whole[classes]
        device = self.aliases.device.type
        halved = device != "meta" and torch.is_autocast_enabled(device)
        key, signature = (self.active if self.follows_task else None, halved), self._signature()
        if key not in self._kept or self._kept[key][0] != signature:
            with torch.inference_mode(False), torch.no_grad():  # a later step of training may use them
                self._kept[key] = (signature, self._all_encoded())
        kept = self._kept[key][1]
        return kept if classes is None else kept[classes]

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, n_classes), minus infinity for classes that are no candidates in training."""
        classes = self.training_classes
        if not len(self.owners):  # a plan, which has no names
            return features.new_zeros(len(features), self.n_classes, dtype=torch.float32)
        texts = self.text_features(classes)
        with _full_precision(features.device.type):
            logits = self.scale() * normalize(features.float(), dim=-1) @ texts.float().T
            bias = getattr(self.model, "logit_bias", None)
            if bias is not None:
                logits = logits + bias.float()
        if classes is None:
            return logits
        return logits.new_full((len(logits), self.n_classes), float("-inf")).index_copy(1, classes, logits)

    def begin_task(self, tasks: Sequence[int], isolate: bool) -> None:
        """Candidates in training are the classes of these tasks."""
        classes = sorted({label for task in tasks for label in self.task_classes[task]})
        self.training_classes = torch.tensor(classes, device=self.aliases.device)

    def end_task(self) -> None:
        """Every class is a candidate again."""
        self.training_classes = None

    def activate(self, task: int) -> None:
        """Answers for one task from now on."""
        self.active = task

    def route(self, routes: list[tuple[int, Tensor]]) -> None:
        """Several tasks in one batch: the same classifier answers for all."""

    def forget(self) -> None:
        """Computes the embeddings anew when they are next needed."""
        self._kept.clear()

    def _signature(self) -> tuple[Any, ...]:
        """What the embeddings depend on: every tensor of the text tower and how often it has been written."""
        return tuple((id(item), item._version) for item in self._text_parameters())

    def _all_encoded(self) -> Tensor:
        encoded = [normalize(self._encode_tokens(part).float(), dim=-1) for part in self.tokens.split(CHUNK)]
        whole = self._averaged(torch.cat(encoded), self.owners, self.n_classes)
        return whole[self.aliases]  # to the last bit: rows of a batch may differ in it

    def _encoded(self, tokens: Tensor, owners: Tensor, count: int) -> Tensor:
        return self._averaged(normalize(self._encode_tokens(tokens).float(), dim=-1), owners, count)

    @staticmethod
    def _averaged(embedded: Tensor, owners: Tensor, count: int) -> Tensor:
        if len(owners) == count:  # one prompt a class, in order
            return embedded
        sums = embedded.new_zeros(count, embedded.shape[1]).index_add(0, owners, embedded)
        return normalize(sums, dim=-1)


def _full_precision(device: str) -> AbstractContextManager[Any]:
    """Turns autocast off where it is on: similarities of normalised vectors need more digits than bfloat16 has."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
