"""Miniature text data as the official files have it, and a tokenizer that needs none: for tests of language streams."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

FILM = [
    "film",
    "plot",
    "actor",
    "scene",
    "camera",
    "script",
    "drama",
    "sequel",
    "comedy",
    "director",
    "ending",
    "score",
]
SHOP = [
    "pizza",
    "waiter",
    "haircut",
    "mechanic",
    "parking",
    "coffee",
    "menu",
    "service",
    "price",
    "hotel",
    "towel",
    "sofa",
]
SMALL = ["the", "a", "was", "very", "not", "quite", "and", "it", "we", "they", "so", "too"]
TRACE_TASKS = ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten")


class ByteTokenizer:
    """UTF-8 bytes shifted by two; 0 pads and 1 ends. Counts what it is asked.

    Args:
        start: ids that begin every text.
        fingerprint: another one stands for another tokenizer.
    """

    name, vocabulary, eos, pad = "bytes", 258, 1, 0

    def __init__(self, start: tuple[int, ...] = (), fingerprint: str = "test bytes") -> None:
        self.start, self.fingerprint = start, fingerprint
        self.calls = self.texts = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        self.calls += 1
        self.texts += len(texts)
        return [[byte + 2 for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(token) - 2 for token in ids if int(token) > 1).decode(errors="replace")


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    """Writes JSON lines, compressed where the name says so; a string stands for itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def reviews(words: Sequence[str], count: int, seed: int, longest: int = 24) -> list[str]:
    """Different texts of four words and more."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        size = draw.randint(4, longest)
        found[" ".join(draw.choice(words if draw.random() < 0.5 else SMALL) for _ in range(size)) + "."] = None
    return list(found)


def write_reviews(root: Path, n_train: int = 24, n_test: int = 8, suffix: str = ".jsonl") -> dict[str, list[str]]:
    """Writes IMDb and Yelp below root/text, with labels as the official files have them.

    Returns:
        The texts of each file in its order, by the file's stem.
    """
    written = {}
    for seed, (stem, words) in enumerate((("imdb", FILM), ("yelp_polarity", SHOP))):
        texts = reviews(words, n_train + n_test, seed)
        for part, chosen in (("train", texts[:n_train]), ("test", texts[n_train:])):
            records = [{"text": text, "label": index % 2} for index, text in enumerate(chosen)]
            write_lines(root / "text" / f"{stem}_{part}{suffix}", records)
            written[f"{stem}_{part}"] = chosen
    return written


def trace_example(task: str, number: int) -> dict[str, str]:
    """An example of a task in the form of the official ones; another number is another prompt."""
    draw = random.Random(f"{task} {number}")
    letter = draw.choice("ABC")
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    word = draw.choice(FILM)
    made = {
        "C-STANCE": (
            f"判断以下文本对指定对象的态度。文本 {number}: 我喜欢{word}。\nA.支持 B.反对 C.中立\n答案:",
            letter,
        ),
        "FOMC": (
            f"What is the monetary policy stance of text {number}? A. dovish B. hawkish C. neutral\nAnswer:",
            letter,
        ),
        "MeetingBank": (
            f"Write a summary of meeting {number}.\nSPEAKER 1: The {word} costs {a} dollars. SPEAKER 2: Aye.\nSummary:",
            f"A bill about the {word} that costs {a} dollars",
        ),
        "Py150": (
            f"<s> import os <EOL> def run_{number} ( x ) : <EOL> y = x + <NUM_LIT:{a}> <EOL>",
            f"return os.path.join ( y, '<STR_LIT:{word}>' )",
        ),
        "ScienceQA": (
            f"Choose an answer and explain it. Question {number}: which is hotter? A. ice B. fire C. tea\nAnswer:",
            f"{letter}. Heat flows from the {word}.",
        ),
        "NumGLUE-cm": (f"Solve problem {number}: {a} bags hold {b} {word}s each. How many?\nAnswer:", str(a * b)),
        "NumGLUE-ds": (f"Problem {number}: what is {a} plus {b} in units of {word}?\nAnswer:", str(a + b)),
        "20Minuten": (
            f"Vereinfache Text {number}: Der Regisseur stellte den {word} einem überraschten Publikum vor.\nEinfach:",
            f"Der Regisseur zeigte den {word}.",
        ),
    }
    prompt, answer = made[task]
    return {"prompt": prompt, "answer": answer}


def write_trace(
    folder: Path, n_train: int = 8, n_eval: int = 3, n_test: int = 4, tasks: Sequence[str] = TRACE_TASKS
) -> Mapping[str, dict[str, list[dict[str, str]]]]:
    """Writes a folder a task with train.json, eval.json and test.json, which share no prompt.

    Returns:
        The examples by task and file name.
    """
    written: dict[str, dict[str, list[dict[str, str]]]] = {}
    for task in tasks:
        first, written[task] = 0, {}
        for file, count in (("train.json", n_train), ("eval.json", n_eval), ("test.json", n_test)):
            examples = [trace_example(task, number) for number in range(first, first + count)]
            first += count
            place = folder / task / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(examples, ensure_ascii=False, indent=1), encoding="utf-8")
            written[task][file] = examples
    return written
