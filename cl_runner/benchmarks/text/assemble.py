"""Domains put together: one store of token ids, tasks with their parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cl_runner.benchmarks.store import Part
from cl_runner.benchmarks.stream import Task
from cl_runner.benchmarks.text.leaks import Parts
from cl_runner.benchmarks.text.ragged import Ragged, end_to_end
from cl_runner.benchmarks.text.sequences import Sequences
from cl_runner.benchmarks.text.store import Origins, TokenStore


def assemble(domains: Sequence[Parts], *, pad: int, labelled: bool) -> tuple[list[Task], TokenStore]:
    """Makes the store, in the order training, validation, test of each domain, and the tasks.

    Args:
        domains: in the order of the stream.
        pad: id that fills up.
        labelled: whether the task of a sample is known.
    """
    parts = [part for domain in domains for part in (domain.train, domain.validation, domain.test)]
    counts = [len(part) for part in parts]
    labels = np.repeat(np.arange(len(parts)) // 3, counts)
    answered = any(part.raw_answers is not None for part in parts)
    store = TokenStore(
        ids=end_to_end([part.ids for part in parts]),
        firsts=np.concatenate([part.firsts for part in parts]),
        labels=labels,
        tasks=labels if labelled else np.zeros_like(labels),
        pad=pad,
        prompts=_raw([part.raw_prompts for part in parts], counts) if answered else None,
        answers=_raw([part.raw_answers for part in parts], counts) if answered else None,
        origins=_origins(parts),
    )
    ids = torch.arange(len(store)).split(counts)
    tasks = []
    for index, domain in enumerate(domains):
        train, validation, test = (Part(store, of_part, index) for of_part in ids[3 * index : 3 * index + 3])
        tasks.append(
            Task(
                index,
                domain.name,
                (index,),
                (domain.name,),
                len(train),
                len(test),
                train,
                validation if len(validation) else None,
                test,
            )
        )
    return tasks, store


def _raw(parts: Sequence[Ragged | None], counts: Sequence[int]) -> Ragged:
    """Raw texts of all samples, empty for those of a part that has none."""
    none = np.empty(0, np.uint8)
    whole = [
        Ragged(none, np.zeros(count + 1, np.int64)) if part is None else part
        for part, count in zip(parts, counts, strict=True)
    ]
    return end_to_end(whole)


def _origins(parts: Sequence[Sequences]) -> Origins:
    files = tuple(dict.fromkeys(part.path for part in parts))
    file = np.concatenate([np.full(len(part), files.index(part.path), np.int32) for part in parts])
    return Origins(files, file, np.concatenate([part.lines for part in parts]))
