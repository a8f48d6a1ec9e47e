"""What is measured of texts: loss, perplexity, token accuracy, and the scores of generated answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from cl_runner import scores
from cl_runner.backbones.language import LanguageNetwork
from cl_runner.benchmarks.avalanche_view import sample_ids
from cl_runner.tokens import Tokenizer
from cl_runner.training.meter import Meter
from cl_runner.training.token_measures import TOKEN_ACCURACY, token_totals


class TokenMeter(Meter):
    """Loss, perplexity and token accuracy of each task's test texts; where answers are scored, their score.

    Args:
        metrics: of each task: token_accuracy, or a score of `cl_runner.scores`, which is then the entry of the matrix.
        tokenizer: reads what was generated.
        answer_length: the most tokens generated.
    """

    def __init__(self, metrics: Sequence[str], tokenizer: Tokenizer | None, answer_length: int | None) -> None:
        super().__init__()
        self.metrics, self.tokenizer, self.answer_length = tuple(metrics), tokenizer, answer_length

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Starts counting."""
        self.totals = torch.zeros(3, dtype=torch.float64, device=strategy.device)

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Counts a batch on the device."""
        self.totals += token_totals(strategy.mb_output, strategy.mb_y)

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Reads the sums, once a task, and scores generated answers where the task has such."""
        task = strategy.experience.current_experience
        loss, right, tokens = self.totals.tolist()
        mean, metric = loss / tokens, self.metrics[task]
        accuracy = right / tokens
        score = accuracy if metric == TOKEN_ACCURACY else self._score(strategy, task, metric)
        self.accuracies[task] = score
        self.figures[task] = {
            "loss": mean,
            "perplexity": math.exp(min(mean, 700.0)),  # the largest exponent that is a float
            "token_accuracy": accuracy,
            "metric": metric,
            "tokens": int(tokens),
        }

    def _score(self, strategy: Any, task: int, metric: str) -> float:
        """The mean score of the answers that the network generates."""
        network, store = strategy.model, strategy.lane.store
        assert isinstance(network, LanguageNetwork) and self.tokenizer is not None and self.answer_length is not None
        ids = sample_ids(strategy.adapted_dataset)
        assert ids is not None
        network.begin_evaluation(task)
        predictions: list[str] = []
        for some in ids.split(strategy.eval_mb_size):
            with torch.inference_mode():
                found = network.generate(
                    store.prompts(some), most=self.answer_length, eos=self.tokenizer.eos, pad=self.tokenizer.pad
                )
            predictions += [self.tokenizer.decode(answer) for answer in found]
        each = scores.score(metric, predictions=predictions, references=store.answers(ids), sources=store.sources(ids))
        return sum(each) / len(each)
