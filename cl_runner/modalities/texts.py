"""Texts of which a causal language model predicts the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from cl_runner import scores
from cl_runner.adapters.adapter import Adapter
from cl_runner.adapters.placement import Placement
from cl_runner.backbones.language import LanguageNetwork
from cl_runner.backbones.language_weights import vocabulary_of
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.benchmarks.text.stream import LanguageStream
from cl_runner.config.checks import NETWORK_KEYS, build
from cl_runner.errors import RequestError
from cl_runner.modalities.modality import Modality, data_root
from cl_runner.tokens import COUNTED, Tokenizer
from cl_runner.training.account import forward_flops
from cl_runner.training.token_measures import TOKEN_ACCURACY, TokenCrossEntropy, amount, token_totals

if TYPE_CHECKING:
    from cl_runner.training.token_lane import TokenLane
    from cl_runner.training.token_meter import TokenMeter

LENGTHS = ("length", "prompt_length", "answer_length")
LOGIT_BYTES = 1 << 30  # of the logits of a batch that is evaluated


class Texts(Modality):
    """Samples are token ids and marks (B, 2, L), targets the next tokens (B, L)."""

    unit = "texts"
    reading = "encoding texts"
    totals = staticmethod(token_totals)
    amount = staticmethod(amount)

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        options = OmegaConf.to_container(config.backbone)
        assert isinstance(options, dict)
        self.backbone = build(OmegaConf.create({key: item for key, item in options.items() if key not in NETWORK_KEYS}))
        self._tokenizer: Tokenizer | None = None
        self._metrics: tuple[str, ...] = ()

    @property
    def _name(self) -> str:
        """What the backbone is called; a folder or file of weights may say it alone."""
        return str(self.backbone.name or self.backbone.pretrained)

    def open(self) -> tuple[Any, LanguageStream]:
        """The benchmark and its outline; the longest sequence must fit the model's positions."""
        benchmark = build(self.config.benchmark)
        outline: LanguageStream = benchmark.outline(data_root(self.config))
        self._metrics = outline.metrics
        positions = self.backbone.positions()
        if positions is not None and outline.length > positions:
            keys = [f"benchmark.{key}" for key in LENGTHS if key in self.config.benchmark]
            raise RequestError(
                f"benchmark: sequences of {outline.length} tokens, and backbone={self._name} has {positions} positions",
                f"at most {positions} by {' or '.join(keys)} (a prompt and its answer together)"
                if len(keys) > 1
                else f"at most {positions} by {keys[0]}",
            )
        return benchmark, outline

    def network(self, outline: TaskStream, *, load_weights: bool = True, task_aware: bool = False) -> LanguageNetwork:
        """The language model with its adapter attached."""
        adapter = build(self.config.adapter)
        if not isinstance(adapter, Adapter):
            raise RequestError(
                f"adapter._target_={self.config.adapter._target_} is no Adapter",
                "derive it from cl_runner.adapters.Adapter",
            )
        self._check(adapter, outline)
        kind = LanguageNetwork
        if task_aware:
            from cl_runner.training.task_aware import TaskAwareLanguageNetwork

            kind = TaskAwareLanguageNetwork
        network = kind(
            self.backbone.build_language_model(load_weights=load_weights),
            n_tasks=len(outline),
            task_labels=outline.task_labels,
            pretrained=bool(self.config.backbone.get("pretrained")),
            precision=self.config.trainer.precision,
        )
        network.adapter = adapter
        placement = OmegaConf.to_container(self.config.placement)
        assert isinstance(placement, dict)
        adapter.attach(network, Placement(**placement))  # type: ignore[arg-type]
        self._check_precision(adapter)
        return network

    def given(self) -> dict[str, Any]:
        """The model's tokenizer; what scores need is asked for before anything is trained."""
        self._tokenizer = self.backbone.read_tokenizer()
        self.backbone.check_tokenizer(self._tokenizer)
        scores.require(self._metrics)
        return {"tokenizer": self._tokenizer}

    def meet(self, stream: TaskStream, network: TaskNetwork) -> None:
        """Lets the model's files say with which tokenizer they were trained."""
        from cl_runner.backbones.tokenizers import record_tokenizer

        assert self._tokenizer is not None
        record_tokenizer(network.backbone, self._tokenizer)

    def criterion(self, network: TaskNetwork) -> nn.Module:
        """The next-token objective."""
        return TokenCrossEntropy(self.config.trainer.label_smoothing)

    def lane(self, stream: TaskStream) -> TokenLane:
        """Batches of padded texts."""
        from cl_runner.training.token_lane import TokenLane

        assert stream.store is not None
        return TokenLane(stream.store, torch.Generator().manual_seed(self.config.seed))

    def meter(self, stream: TaskStream, network: TaskNetwork) -> TokenMeter:
        """Loss, perplexity, token accuracy and scores."""
        from cl_runner.training.token_meter import TokenMeter

        texts = cast(LanguageStream, stream)
        return TokenMeter(texts.metrics, texts.tokenizer, texts.answer_length)

    def eval_batch_size(self, stream: TaskStream, network: TaskNetwork) -> int:
        """As many texts as asked for, but no more than their logits fit into 1 GiB."""
        longest = cast(LanguageStream, stream).length * vocabulary_of(network.backbone) * 4
        return max(1, min(super().eval_batch_size(stream, network), LOGIT_BYTES // longest))

    def answer_one(self, stream: TaskStream, network: TaskNetwork) -> None:
        """The logits of the longest sequence, every position counting."""
        network(self._longest(stream).to(network.anchor.device))

    def forward_flops(self, network: TaskNetwork, stream: TaskStream) -> int | None:
        """Of one sequence of the longest length, every position counting."""
        return forward_flops(network, self._longest(stream))

    def _longest(self, stream: TaskStream) -> Tensor:
        x = torch.zeros(1, 2, cast(LanguageStream, stream).length, dtype=torch.long)
        x[:, COUNTED] = 1
        return x

    def measure(self, stream: TaskStream) -> str:
        """Token accuracy, or a score where some task has its own."""
        own = set(cast(LanguageStream, stream).metrics) - {TOKEN_ACCURACY}
        return "score" if own else "token accuracy"

    def describe(self, stream: TaskStream, network: TaskNetwork) -> dict[str, str]:
        """Domains and tokens instead of classes."""
        texts = cast(LanguageStream, stream)
        known = "domains known" if stream.task_labels else "domains not told"
        return {
            "benchmark": f"{len(stream)} domains of texts, at most {texts.length} tokens each, {known}",
            "backbone": f"{network.base_parameters:,} parameters, {vocabulary_of(network.backbone):,} tokens",
        }

    def _check_precision(self, adapter: Adapter) -> None:
        """Refuses training weights that are held in bfloat16: most steps are smaller than its spacing."""
        trains = getattr(adapter, "base", "all") != "frozen" or getattr(adapter, "full", ())
        if trains and self.config.backbone.get("dtype") == "bfloat16":
            raise RequestError(
                "backbone.dtype=bfloat16 is for a base that stands still, and here weights of the base train",
                "use adapter=lora or another with adapter.base=frozen and adapter.full=[], or backbone.dtype=float32",
            )

    def _check(self, adapter: Adapter, outline: TaskStream) -> None:
        """Refuses sets of which nothing says which one a text belongs to."""
        name = adapter.label
        rule = str(getattr(adapter, "task_inference", "auto"))
        if not adapter.takes_text:
            raise RequestError(
                f"adapter={name} branches a network that classifies images, and backbone={self._name} is a "
                "language model",
                "use adapter=lora, dylora, dclora, hybrid, codyra, peft or none",
            )
        if adapter.per_task and not outline.task_labels:
            raise RequestError(
                f"benchmark.task_labels=false with adapter={name}: it keeps a set per task, and no rule tells "
                "which one a text belongs to",
                "set benchmark.task_labels=true, or adapter.sharing=shared",
            )
        if rule != "auto":
            raise RequestError(f"adapter.task_inference={rule}: tasks of texts are not inferred", "drop it")
