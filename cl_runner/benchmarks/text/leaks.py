"""No test text may be trained on, of whatever domain: looked for in raw texts and in token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cl_runner.benchmarks.text.sequences import Sequences
from cl_runner.errors import RequestError


@dataclass(frozen=True)
class Parts:
    """A domain's samples.

    Attributes:
        name: of the domain.
        metric: what it is scored by.
        train, validation, test: its samples; the validation part may be empty.
    """

    name: str
    metric: str
    train: Sequences
    validation: Sequences
    test: Sequences


def without_leaks(domains: Sequence[Parts]) -> tuple[list[Parts], list[str]]:
    """Drops from the training parts what is in any test part; from the validation parts also what trains.

    Two samples are the same where their raw texts (of a prompt and its answer: the prompts) are, or the token ids that
    the cut leaves of them.

    Returns:
        The domains, and a line for each part that lost something.

    Raises:
        RequestError: nothing is left of a training part.
    """
    tests = _Known([domain.test for domain in domains])
    notes: list[str] = []
    kept = []
    for domain in domains:
        leaked = tests.holds(domain.train)
        if leaked.all():
            raise RequestError(
                f"{domain.train.path}: all {len(leaked)} training texts of {domain.name} are test texts as well"
                + _cut_alike(tests.raw, domain.train, leaked),
                "name different files for training and test, or keep more of each text (length, prompt_length)",
            )
        if leaked.any():
            alike = _cut_alike(tests.raw, domain.train, leaked)
            notes.append(
                f"{domain.name}: {int(leaked.sum())} training texts are test texts as well{alike} and were dropped"
            )
        kept.append(replace(domain, train=domain.train.take(~leaked)))
    if not any(len(domain.validation) for domain in kept):
        return kept, notes
    trained = _Known([domain.train for domain in kept])
    for index, domain in enumerate(kept):
        seen = tests.holds(domain.validation) | trained.holds(domain.validation)
        if seen.any():
            count = int(seen.sum())
            notes.append(f"{domain.name}: {count} validation texts are test or training texts as well and were dropped")
        kept[index] = replace(domain, validation=domain.validation.take(~seen))
    return kept, notes


def check_disjoint(domains: Sequence[Parts]) -> None:
    """Fails where a test sample is trained on: the promise that :func:`without_leaks` keeps, counted another way."""
    tests = {text for domain in domains for text in domain.test.fingerprints()}
    trained = {text for domain in domains for part in (domain.train, domain.validation) for text in part.fingerprints()}
    if tests & trained:
        raise AssertionError(f"{len(tests & trained)} test samples are in the training part")


def _cut_alike(raw: np.ndarray, part: Sequences, leaked: np.ndarray) -> str:
    """Says how many of them are only equal in the part that the cut to length or prompt_length has left."""
    count = int((leaked & ~np.isin(part.digests, raw)).sum())
    return f" ({count} only as far as they are kept: length, prompt_length)" if count else ""


class _Known:
    """Samples to recognise."""

    def __init__(self, parts: Sequence[Sequences]) -> None:
        self.raw = np.concatenate([part.digests for part in parts])
        self.tokens = {text for part in parts for text in part.fingerprints()}

    def holds(self, part: Sequences) -> np.ndarray:
        """Which samples of a part are among these, bool (N,)."""
        same_tokens = np.array([text in self.tokens for text in part.fingerprints()], dtype=bool)
        return same_tokens | np.isin(part.digests, self.raw)
