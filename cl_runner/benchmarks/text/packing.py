"""Domains as blocks: the texts of a part joined and cut, once leaks are out of them."""

from __future__ import annotations

import numpy as np

from cl_runner.benchmarks.text.leaks import Parts
from cl_runner.benchmarks.text.sequences import packed, without_targets
from cl_runner.errors import RequestError


def pack_domain(domain: Parts, length: int, eos: int) -> tuple[Parts, list[str]]:
    """Packs the parts of a domain, and drops a validation part that is one token in all.

    Args:
        domain: its texts, uncut.
        length: tokens of a block.
        eos: stands between two texts.

    Returns:
        The domain in blocks, and lines that say how many they are and what was dropped.

    Raises:
        RequestError: the training or the test part leaves nothing to predict: it is at most one token in all.
    """
    blocks, became, notes = {}, [], []
    for part, texts in (("training", domain.train), ("validation", domain.validation), ("test", domain.test)):
        blocks[part] = packed(texts, length, eos)
        if not len(texts):
            continue
        became.append(f"{part} {len(texts)} into {len(blocks[part])}")
        if len(blocks[part]) and not without_targets(blocks[part]).any():
            continue
        if part != "validation":
            raise RequestError(
                f"benchmark.long_texts=pack: {texts.path} leaves {domain.name} at most one token for {part}, and "
                "nothing to predict",
                "name a file of more or longer texts",
            )
        became.pop()
        blocks[part] = blocks[part].take(np.arange(0))
        notes.append(f"{domain.name}: validation texts of one token in all leave nothing to predict and were dropped")
    line = f"{domain.name}: texts were packed into blocks of {length} tokens, which count as texts: {', '.join(became)}"
    return Parts(domain.name, domain.metric, *blocks.values()), [*notes, line]
