"""Streams of texts: batches, cutting and packing, the choice of texts, leaks, the cache, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import text_trees as trees
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from text_trees import ByteTokenizer

from cl_runner.benchmarks.text import downloads, streams
from cl_runner.benchmarks.text.encoding import encode
from cl_runner.benchmarks.text.files import TextFile
from cl_runner.benchmarks.text.leaks import Parts, check_disjoint
from cl_runner.benchmarks.text.ragged import Ragged
from cl_runner.benchmarks.text.selection import REST, TENTH, Selection, held_out
from cl_runner.benchmarks.text.sequences import Sequences, packed
from cl_runner.benchmarks.text.store import TokenStore
from cl_runner.benchmarks.text.streams import ImdbYelp, TextDomains, Trace
from cl_runner.benchmarks.text.token_cache import TokenCache
from cl_runner.config.benchmarks import BENCHMARKS
from cl_runner.errors import RequestError

CONFIGS = Path(__file__).parents[1] / "configs" / "benchmark"
SCORES = ["exact_match", "exact_match", "rouge_l", "edit_similarity", "first_character", "exact_match", "exact_match",
          "sari"]  # fmt: skip


def texts_of(part, tokenizer) -> list[str]:
    """What a part holds, read back from its batches."""
    x, _ = part[torch.arange(len(part))]
    return [tokenizer.decode(row.tolist()) for row in x[:, 0]]


def domains_stream(tmp_path, domains, tokenizer=None, **options):
    options = {"cache": str(tmp_path / "cache"), "root": str(tmp_path), **options}
    return TextDomains(domains=domains, **options).stream(tmp_path, tokenizer=tokenizer or ByteTokenizer())


# ------------------------------------------------------------------------------------------------------ batches


@st.composite
def samples(draw):
    """Sequences with the first token that counts, and ids to ask for."""
    rows = draw(st.lists(st.lists(st.integers(2, 300), min_size=2, max_size=12), min_size=1, max_size=8))
    firsts = [draw(st.integers(1, len(row) - 1)) for row in rows]
    return rows, firsts, draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=10))


def store_of(rows, firsts, pad=0, **more):
    zeros = np.zeros(len(rows), int)
    return TokenStore(ids=Ragged.of(rows), firsts=np.array(firsts), labels=zeros, tasks=zeros, pad=pad, **more)


@settings(max_examples=150, deadline=None)
@given(samples(), st.sampled_from([0, 5]))
def test_a_batch_is_what_its_samples_are_one_by_one(drawn, pad):
    rows, firsts, ids = drawn
    store = store_of(rows, firsts, pad)
    x, y = store.batch(torch.tensor(ids))
    width = max(len(rows[index]) for index in ids)
    assert x.shape == (len(ids), 2, width) and y.shape == (len(ids), width) and x.dtype == y.dtype == torch.int64
    for b, index in enumerate(ids):
        row, size = rows[index], len(rows[index])
        for t in range(width):
            counts = t + 1 < size and t + 1 >= firsts[index]
            assert x[b, 0, t] == (row[t] if t < size else pad)
            assert x[b, 1, t] == int(counts)
            assert y[b, t] == (row[t + 1] if counts else -100)
    assert store.counted(torch.tensor(ids)) == int((y != -100).sum()) == sum(len(rows[i]) - firsts[i] for i in ids)
    assert [p.tolist() for p in store.prompts(torch.tensor(ids))] == [rows[i][: firsts[i]] for i in ids]
    items = [store.item(index) for index in ids]
    assert {item[0].shape for item in items} == {(2, max(map(len, rows)))}
    for row, (item_x, item_y) in enumerate(items):
        assert item_x[:, :width].equal(x[row]) and item_y[:width].equal(y[row])
        assert (item_y[width:] == -100).all() and (item_x[1, width:] == 0).all() and (item_x[0, width:] == pad).all()


def test_padding_counts_nowhere_even_where_it_is_a_token_of_the_text():
    rows, firsts = [[7, 0, 0, 9], [3, 0], [0] * 6], [1, 1, 3]
    store = store_of(rows, firsts, pad=0)
    x, y = store.batch(torch.arange(3))
    assert x[:, 1].sum(1).tolist() == [3, 1, 3]
    assert y[0].tolist() == [0, 0, 9, -100, -100, -100] and y[1].tolist() == [0] + [-100] * 5
    other = store_of(rows, firsts, pad=11)
    assert other.batch(torch.arange(3))[1].equal(y)


def test_placement_on_the_host_gives_the_same_batches():
    store = store_of([[4, 5, 6], [7, 8]], [1, 1])
    before = store.batch(torch.tensor([1, 0]))
    after = store.to(torch.device("cpu"), "host").batch(torch.tensor([1, 0]))
    assert all(a.equal(b) for a, b in zip(before, after, strict=True)) and store.resident
    assert store.batch(torch.tensor([], dtype=torch.int64))[0].shape == (0, 2, 0)


# -------------------------------------------------------------------------------------------- cutting and packing


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(2, 50), max_size=9), min_size=1, max_size=7), st.integers(4, 9))
def test_packing_loses_no_token(rows, length):
    expected: list[int] = []
    for index, row in enumerate(rows):
        expected += ([1] if index else []) + row
    count = len(rows)
    digests = np.frombuffer(bytes(16 * count), "V16")
    lines = np.arange(count) * 10
    blocks = packed(Sequences(Path("a"), Ragged.of(rows), np.ones(count, int), lines, digests), length, eos=1)
    assert blocks.ids.flat.tolist() == expected
    sizes = blocks.ids.sizes.tolist()
    assert max(sizes, default=0) <= length and all(size in (length, length - 1) for size in sizes[:-1])
    assert sizes[:-2] == [length] * len(sizes[:-2])
    assert min(sizes, default=2) > 1 or len(expected) < 2
    begin = 0
    for size, line in zip(sizes, blocks.lines.tolist(), strict=True):  # the text that holds the block's first token
        seen = np.cumsum([len(row) + 1 for row in rows])
        assert line == 10 * int(np.searchsorted(seen, begin, side="right"))
        begin += size


def test_texts_are_cut_at_the_length_and_every_token_after_the_first_counts(tmp_path):
    trees.write_lines(tmp_path / "a.jsonl", [{"text": "abcdefghij"}, {"text": "xyz"}, {"text": "klmno"}])
    trees.write_lines(tmp_path / "b.jsonl", [{"text": "ABCDEFG"}])
    domain = [{"name": "mine", "train": "a.jsonl", "test": "b.jsonl"}]
    for start in ((), (250,), (250, 251)):
        tokenizer = ByteTokenizer(start)
        stream = domains_stream(tmp_path, domain, tokenizer, length=6)
        room = 6 - len(start)
        assert texts_of(stream.tasks[0].train, tokenizer)[0][-room:] == "abcdefghij"[:room]
        x, y = stream.tasks[0].train[torch.arange(3)]
        assert tuple(x[0, 0, : len(start)].tolist()) == start
        assert (y[0] != -100).sum() == 6 - max(len(start), 1) and stream.store.longest == stream.length == 6
        assert stream.answer_length is None and stream.metrics == ("token_accuracy",)


def test_long_texts_are_packed_or_refused(tmp_path):
    texts = ["one", "a much longer text", "another text that is long"]
    trees.write_lines(tmp_path / "a.txt", ["", *texts])
    trees.write_lines(tmp_path / "b.txt", ["test"])
    domain = [{"name": "mine", "train": "a.txt", "test": "b.txt"}]
    tokenizer = ByteTokenizer()
    stream = domains_stream(tmp_path, domain, tokenizer, length=8, long_texts="pack")
    x, _ = stream.tasks[0].train[torch.arange(stream.tasks[0].n_train)]
    together = [token for row in x[:, 0].tolist() for token in row if token != tokenizer.pad]
    expected = [1 if char == "\0" else ord(char) + 2 for char in "\0".join(texts)]
    assert together == expected and stream.tasks[0].n_train == -(-len(expected) // 8)
    assert stream.store.where(0) == f"{tmp_path / 'a.txt'}, line 2"
    with pytest.raises(RequestError, match=r"train of mine: .*a\.txt, line 3: the text takes 18 tokens.*length=8"):
        domains_stream(tmp_path, domain, length=8, long_texts="refuse")
    assert domains_stream(tmp_path, domain, length=25, long_texts="refuse").store.longest == 25
    trees.write_lines(tmp_path / "b.txt", ["test", "a test text that is too long for it"])
    with pytest.raises(RequestError, match=r"test of mine: .*b\.txt, line 2: the text takes 35 tokens"):
        domains_stream(tmp_path, domain, length=25, long_texts="refuse")


PAIR = {"prompt": "12345678", "answer": "123"}


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([PAIR, PAIR | {"prompt": "123456789"}], [], r"train of mine: .*a\.jsonl, line 2: the prompt takes 10 tokens, "
         r"more than benchmark\.prompt_length=9"),
        ([PAIR, PAIR, PAIR | {"answer": "1234"}], [], r"train of mine: .*a\.jsonl, line 3: the answer takes 5 tokens, "
         r"more than benchmark\.answer_length=4"),
        ([PAIR, PAIR | {"answer": "1234"}, PAIR | {"prompt": "123456789"}], [], "line 2: the answer takes 5"),
        ([PAIR, PAIR | {"prompt": "123456789", "answer": "1234"}], [], "line 2: the prompt takes 10"),
        ([PAIR], [{"prompt": "1", "answer": "1234"}], r"test of mine: .*b\.jsonl, line 2: the answer takes 5"),
    ],
)  # fmt: skip
def test_long_prompts_and_answers_are_refused_where_that_is_asked(tmp_path, train, test, said):
    domain = [{"name": "mine", "train": "a.jsonl", "test": "b.jsonl"}]
    trees.write_lines(tmp_path / "a.jsonl", train)
    trees.write_lines(tmp_path / "b.jsonl", [{"prompt": "other", "answer": "x"}, *test])
    lengths = {"prompt_length": 9, "answer_length": 4}
    tokenizer = ByteTokenizer((250,))  # counts as a token of the prompt, as the eos does of the answer
    with pytest.raises(RequestError, match=said) as refused:
        domains_stream(tmp_path, domain, tokenizer, long_texts="refuse", **lengths)
    assert "long_texts=truncate" in refused.value.hint and "pack" not in refused.value.hint
    assert len(domains_stream(tmp_path, domain, tokenizer, **lengths).tasks[0].train) == len(train)
    trees.write_lines(tmp_path / "a.jsonl", [PAIR])
    trees.write_lines(tmp_path / "b.jsonl", [{"prompt": "other", "answer": "x"}])
    fits = domains_stream(tmp_path, domain, tokenizer, long_texts="refuse", **lengths)
    assert fits.store.longest == 9 + 4


class Forgetful(ByteTokenizer):
    """Makes nothing of dashes."""

    name = "forgetful"

    def encode(self, texts):
        return super().encode([text.replace("-", "") for text in texts])


@pytest.mark.parametrize("start", [(), (250,)])
@pytest.mark.parametrize(
    ("file", "pair", "part"),
    [
        ("a", {"prompt": "--", "answer": "yes"}, "prompt"),
        ("a", {"prompt": "Why?", "answer": "-"}, "answer"),
        ("b", {"prompt": "-", "answer": "-"}, "prompt"),
    ],
)
def test_a_prompt_or_an_answer_without_a_token_is_refused_before_training(tmp_path, file, pair, part, start):
    trees.write_lines(tmp_path / "a.jsonl", [{"prompt": "Who-?", "answer": "me"}])
    trees.write_lines(tmp_path / "b.jsonl", [{"prompt": "When?", "answer": "now"}])
    domain = [{"name": "mine", "train": "a.jsonl", "test": "b.jsonl"}]
    assert len(domains_stream(tmp_path, domain, Forgetful(start)).store) == 2
    content = (tmp_path / f"{file}.jsonl").read_text()
    (tmp_path / f"{file}.jsonl").write_text(f"{content}\n{json.dumps(pair)}\n")
    place = rf"{'train' if file == 'a' else 'test'} of mine: .*{file}\.jsonl, line 3"
    for _ in range(2):  # from the file, then from the cache
        with pytest.raises(RequestError, match=rf"{place}: the {part} has no token: backbone\.tokenizer=forgetful"):
            domains_stream(tmp_path, domain, Forgetful(start))


def packed_stream(tmp_path, train, test, tokenizer=None, **options):
    trees.write_lines(tmp_path / "a.txt", train)
    trees.write_lines(tmp_path / "b.txt", test)
    domain = [{"name": "mine", "train": "a.txt", "test": "b.txt"}]
    return domains_stream(tmp_path, domain, tokenizer, length=8, long_texts="pack", **options)


def test_a_packed_part_without_a_target_is_refused(tmp_path):
    leaves = r"long_texts=pack: .*%s\.txt leaves mine at most one token for %s"
    with pytest.raises(RequestError, match=leaves % ("a", "training")):
        packed_stream(tmp_path, ["a test text", "x", "a test text"], ["a test text"])  # of three texts leaks leave one
    with pytest.raises(RequestError, match=leaves % ("a", "training")):
        packed_stream(tmp_path, ["x"], ["test"])
    with pytest.raises(RequestError, match=leaves % ("b", "test")):
        packed_stream(tmp_path, ["some text"], ["x"])
    with pytest.raises(RequestError, match=leaves % ("a", "training")):
        packed_stream(tmp_path, ["--"], ["test"], Forgetful())
    assert len(packed_stream(tmp_path, ["x"], ["test"], ByteTokenizer((250,))).tasks[0].train) == 1
    task = packed_stream(tmp_path, ["x", "y"], ["test"]).tasks[0]  # x, eos, y
    assert task.train.store.counted(task.train.ids) == 2


def test_a_packed_validation_part_without_a_target_is_dropped_with_a_note(tmp_path):
    stream = packed_stream(tmp_path, ["x", "y", "z"], ["test"], validation_fraction=0.3)
    assert stream.tasks[0].validation is None and len(stream.tasks[0].train) == 1
    assert stream.notes[0].startswith("mine: validation texts of one token in all leave nothing to predict")
    assert stream.notes[1].endswith("count as texts: training 2 into 1, test 1 into 1") and len(stream.notes) == 2
    assert all(stream.store.counted(torch.tensor([index])) for index in range(len(stream.store)))


def test_a_packed_domain_says_how_many_blocks_its_texts_became(tmp_path):
    train = [f"a text of number {index}" for index in range(8)]  # 18 tokens each, and one between two
    said = "mine: texts were packed into blocks of 8 tokens, which count as texts: "
    stream = packed_stream(tmp_path, [*train, "test it"], ["test it"])
    assert stream.tasks[0].n_train == 19 and len(stream.notes) == 2  # 8 * 18 + 7 = 151 tokens; the leak is none of them
    assert stream.notes[1] == said + "training 8 into 19, test 1 into 1"
    stream = packed_stream(tmp_path, train, ["test it"], validation_fraction=0.25)
    assert stream.notes == (said + "training 6 into 15, validation 2 into 5, test 1 into 1",)  # 113, 37 and 7 tokens


def test_of_a_long_prompt_the_end_is_kept_and_only_the_answer_counts(tmp_path):
    pairs = [
        {"prompt": "a long story. Question?", "answer": "yes, of course"},
        {"prompt": "Why?", "answer": "so"},
    ]
    trees.write_lines(tmp_path / "a.jsonl", pairs)
    trees.write_lines(tmp_path / "b.jsonl", [{"prompt": "Who?", "answer": "me"}])
    domain = [{"name": "mine", "train": "a.jsonl", "test": "b.jsonl", "metric": "rouge_l"}]
    tokenizer = ByteTokenizer((255,))
    stream = domains_stream(tmp_path, domain, tokenizer, prompt_length=10, answer_length=5)
    ids = stream.tasks[0].train.ids
    store = stream.store
    prompts = store.prompts(ids)
    assert [tokenizer.decode(row[1:].tolist()) for row in prompts] == ["Question?", "Why?"]
    assert [row[0] for row in prompts] == [255, 255] and len(prompts[0]) == 10
    x, y = store.batch(ids)
    counted = [[token for token in row if token != -100] for row in y.tolist()]
    assert [tokenizer.decode(row) for row in counted] == ["yes,", "so"] and [row[-1] for row in counted] == [1, 1]
    assert store.counted(ids) == 5 + 3 and x[0, 1].nonzero().flatten().tolist() == [9, 10, 11, 12, 13]
    assert store.sources(ids) == [pair["prompt"] for pair in pairs]  # scores see texts that were not cut
    assert store.answers(ids) == [pair["answer"] for pair in pairs]
    assert (stream.length, stream.answer_length, stream.metrics) == (15, 5, ("rouge_l",))


def test_texts_and_answers_in_one_stream(tmp_path):
    trees.write_lines(tmp_path / "a.txt", ["some words", "more words", "last words"])
    trees.write_lines(tmp_path / "b.jsonl", [{"prompt": f"{n}?", "answer": f"n{n}"} for n in range(20)])
    stream = domains_stream(
        tmp_path, [{"name": "t", "train": "a.txt"}, {"name": "p", "train": "b.jsonl"}], length=8, prompt_length=4
    )
    assert stream.metrics == ("token_accuracy", "exact_match") and stream.length == 4 + 512
    task = stream.tasks[1]
    assert (task.n_train, task.n_test) == (18, 2) and task.classes == (1,)
    asked = task.test.ids
    assert [f"n{source[:-1]}" for source in stream.store.sources(asked)] == stream.store.answers(asked)
    assert stream.store.host_labels.tolist() == stream.store.tasks.tolist() == [0] * 3 + [1] * 20


def test_texts_of_one_token_are_dropped_with_a_note(tmp_path):
    trees.write_lines(tmp_path / "a.txt", ["long", "", "x", "also long", "y"])
    trees.write_lines(tmp_path / "b.txt", ["test"])
    trees.write_lines(tmp_path / "c.txt", ["z"])
    domain = {"name": "mine", "train": "a.txt", "test": "b.txt"}
    stream = domains_stream(tmp_path, [domain])
    assert len(stream.tasks[0].train) == 2 and len(stream.notes) == 1
    assert "dropped: 2" in stream.notes[0] and f"{tmp_path / 'a.txt'}, line 3" in stream.notes[0]
    assert len(domains_stream(tmp_path, [domain], ByteTokenizer((250,))).tasks[0].train) == 4
    assert len(domains_stream(tmp_path, [domain], long_texts="pack", length=99).tasks[0].train) == 1
    with pytest.raises(RequestError, match=r"c\.txt leaves mine without a sample"):
        domains_stream(tmp_path, [domain | {"test": "c.txt"}])


# -------------------------------------------------------------------------------------------- the choice of texts


@pytest.mark.parametrize(("count", "most", "seed"), [(50, 20, 42), (7, 7, 0), (1000, 3, 5)])
def test_the_choice_is_that_of_the_datasets_library(count, most, seed):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"number": list(range(count))}).shuffle(seed=seed).select(range(most))
    assert Selection(most, seed).choose(count).tolist() == list(rows["number"])


def test_all_texts_come_in_the_order_of_the_file():
    assert Selection(None, 3).choose(5).tolist() == [0, 1, 2, 3, 4]
    assert sorted(Selection(9, 3).choose(5).tolist()) == [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.integers(0, 50), st.sampled_from([0.0, 0.1, 0.5, 0.99]))
def test_parts_share_no_text(count, seed, fraction):
    tenth, rest = (Selection(None, seed, share).choose(count).tolist() for share in (TENTH, REST))
    assert sorted(tenth + rest) == list(range(count)) and len(tenth) == max(round(count / 10), 1)
    some = Selection(5, seed, REST).choose(count).tolist()
    assert set(some) <= set(rest) and len(some) == min(5, len(rest))
    kept, held = (part.tolist() for part in held_out(count, fraction, seed))
    assert sorted(kept + held) == list(range(count)) and kept and bool(held) == bool(fraction)


def test_another_seed_draws_other_parts():
    assert Selection(None, 0, TENTH).choose(100).tolist() != Selection(None, 1, TENTH).choose(100).tolist()
    assert held_out(100, 0.1, 0)[1].tolist() != held_out(100, 0.1, 1)[1].tolist()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_imdb_yelp(tmp_path, suffix):
    written = trees.write_reviews(tmp_path, n_train=24, n_test=8, suffix=suffix)
    benchmark = ImdbYelp(n_train=10, n_test=5, length=200, validation_fraction=0.2)
    tokenizer = ByteTokenizer()
    stream = benchmark.stream(tmp_path, tokenizer=tokenizer)
    outline = benchmark.outline(tmp_path / "nowhere")
    assert benchmark.modality == "text" and stream.name == outline.name == "imdb_yelp" and stream.n_classes == 2
    assert stream.tokenizer is tokenizer and outline.tokenizer is None and outline.store is None
    for index, (task, planned, stem) in enumerate(zip(stream.tasks, outline.tasks, ("imdb", "yelp_polarity"),
                                                      strict=True)):  # fmt: skip
        order = np.random.default_rng(42).permutation(24)[:10]
        expected = [written[f"{stem}_train"][position] for position in order]
        held = texts_of(task.validation, tokenizer)
        assert sorted(texts_of(task.train, tokenizer) + held) == sorted(expected) and len(held) == 2
        shuffled = np.random.default_rng(42).permutation(8)[:5]
        assert texts_of(task.test, tokenizer) == [written[f"{stem}_test"][position] for position in shuffled]
        assert task.name == planned.name == ("imdb", "yelp")[index] and task.classes == planned.classes == (index,)
        assert (task.n_train, task.n_test) == (planned.n_train, planned.n_test) == (8, 5)
        assert task.class_names == (task.name,) and {int(label) for label in stream.store.labels[task.test.ids]} == {
            index
        }
    assert stream.notes == () and benchmark.outline(tmp_path).metrics == stream.metrics
    assert (stream.length, outline.length) == (200, 200)


def test_fewer_texts_than_asked_for_are_all_taken_and_said(tmp_path):
    trees.write_reviews(tmp_path, n_train=24, n_test=8)
    stream = ImdbYelp(n_train=20, n_test=9).stream(tmp_path, tokenizer=ByteTokenizer())
    assert [len(task.test) for task in stream.tasks] == [8, 8] and len(stream.notes) == 2
    assert stream.notes[0] == "imdb: 8 test texts, fewer than benchmark.n_test=9; all are used"


def test_files_directly_below_root_and_without_task_labels(tmp_path):
    trees.write_reviews(tmp_path)
    stream = ImdbYelp(root=str(tmp_path / "text"), task_labels=False, cache=str(tmp_path / "c")).stream(
        tmp_path / "nowhere", tokenizer=ByteTokenizer()
    )
    assert stream.store.tasks.unique().tolist() == [0] and stream.store.host_labels.unique().tolist() == [0, 1]
    assert (tmp_path / "c").is_dir() and not (tmp_path / "nowhere").exists() and not stream.task_labels


def test_without_files_the_refusal_says_which_to_put_where(tmp_path, monkeypatch):
    trees.write_reviews(tmp_path)
    (tmp_path / "text" / "yelp_polarity_test.jsonl").unlink()

    def no_network(dataset, part):
        raise ConnectionError("no network")

    monkeypatch.setattr(downloads, "_load", no_network)
    with pytest.raises(RequestError) as refused:
        ImdbYelp().stream(tmp_path, tokenizer=ByteTokenizer())
    message = refused.value.message
    assert "lacks yelp_polarity_test.jsonl, and fancyzhx/yelp_polarity could not be fetched: no network" in message
    assert "cl-data prepare imdb_yelp" in refused.value.hint

    def not_installed(dataset, part):
        raise ImportError

    monkeypatch.setattr(downloads, "_load", not_installed)
    with pytest.raises(RequestError, match="datasets library is not installed"):
        ImdbYelp().stream(tmp_path, tokenizer=ByteTokenizer())


def test_what_is_fetched_is_kept_and_chosen_from_as_published(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(dataset, part):
        asked.append((dataset, part))
        texts = trees.reviews(trees.FILM if "imdb" in dataset else trees.SHOP, 40, seed=("train", "test").index(part))
        return datasets.Dataset.from_dict({"text": [f"{part}\n{text} ü" for text in texts], "label": [0] * 40})

    monkeypatch.setattr(downloads, "_load", load)
    tokenizer = ByteTokenizer()
    stream = ImdbYelp(n_train=6, n_test=4, length=400).stream(tmp_path, tokenizer=tokenizer)
    assert sorted(asked) == [(d, p) for d in ("fancyzhx/yelp_polarity", "stanfordnlp/imdb") for p in ("test", "train")]
    published = load("stanfordnlp/imdb", "train").shuffle(seed=42).select(range(6))["text"]
    assert texts_of(stream.tasks[0].train, tokenizer) == list(published)
    assert len(stream.notes) == 4 and "stanfordnlp/imdb" in stream.notes[0]
    asked.clear()
    assert ImdbYelp(n_train=6).stream(tmp_path, tokenizer=tokenizer).notes[0].startswith("imdb: 40 test texts")
    assert asked == [] and sorted(path.suffix for path in (tmp_path / "text").iterdir()) == [".gz"] * 4


# --------------------------------------------------------------------------------------------------------- leaks


def test_an_outline_promises_no_more_texts_than_there_are(tmp_path):
    asked = ImdbYelp(n_train=100_000, n_test=30_000).outline(tmp_path)
    assert [(task.n_train, task.n_test) for task in asked.tasks] == [(25_000, 25_000), (100_000, 30_000)]
    whole = ImdbYelp(n_train=None, n_test=None).outline(tmp_path)
    assert [(task.n_train, task.n_test) for task in whole.tasks] == [(25_000, 25_000), (560_000, 38_000)]


def test_texts_that_the_cut_makes_equal_are_said_to_be_that(tmp_path):
    trees.write_lines(tmp_path / "a.txt", ["abcdefgh one", "abcdefgh two", "other words"])
    trees.write_lines(tmp_path / "a_test.txt", ["abcdefgh three"])
    domains = [{"name": "a", "train": "a.txt", "test": "a_test.txt"}]
    stream = domains_stream(tmp_path, domains, ByteTokenizer(), length=8)
    assert stream.notes == (
        "a: 2 training texts are test texts as well (2 only as far as they are kept: length, prompt_length) and were "
        "dropped",
    )


def test_test_texts_are_not_trained_on_in_any_domain(tmp_path):
    trees.write_lines(tmp_path / "a.txt", ["of a only", "test of b", "test of a", "another", "of a only"])
    trees.write_lines(tmp_path / "a_test.txt", ["test of a", "more of it"])
    trees.write_lines(tmp_path / "b.txt", ["of b only", "more of it", "third"])
    trees.write_lines(tmp_path / "b_test.txt", ["test of b"])
    domains = [{"name": name, "train": f"{name}.txt", "test": f"{name}_test.txt"} for name in "ab"]
    tokenizer = ByteTokenizer()
    stream = domains_stream(tmp_path, domains, tokenizer)
    assert texts_of(stream.tasks[0].train, tokenizer) == ["of a only", "another", "of a only"]
    assert texts_of(stream.tasks[1].train, tokenizer) == ["of b only", "third"]
    assert [task.n_train for task in stream.tasks] == [3, 2]
    assert stream.notes == (
        "a: 2 training texts are test texts as well and were dropped",
        "b: 1 training texts are test texts as well and were dropped",
    )
    blocks = domains_stream(tmp_path, domains, tokenizer, length=6, long_texts="pack")
    trained = "".join(texts_of(blocks.tasks[0].train, tokenizer) + texts_of(blocks.tasks[1].train, tokenizer))
    assert trained == "of a onlyanotherof a onlyof b onlythird"  # eos is no text
    with pytest.raises(RequestError, match="all 2 training texts of a are test texts"):
        domains_stream(tmp_path, [{"name": "a", "train": "a_test.txt", "test": "a_test.txt"}])


def test_what_the_cut_makes_equal_is_a_leak_too(tmp_path):
    trees.write_lines(tmp_path / "a.txt", ["same beginning, one end", "other"])
    trees.write_lines(tmp_path / "b.txt", ["same beginning, another end"])
    domain = [{"name": "a", "train": "a.txt", "test": "b.txt"}]
    assert domains_stream(tmp_path, domain, length=99).tasks[0].n_train == 2
    cut = domains_stream(tmp_path, domain, length=10)
    assert cut.tasks[0].n_train == 1 and "1 training texts" in cut.notes[0]


def test_a_prompt_of_the_test_part_is_not_trained_on_with_another_answer(tmp_path):
    trees.write_lines(tmp_path / "a.jsonl", [{"prompt": "Who?", "answer": "you"}, {"prompt": "Why?", "answer": "so"}])
    trees.write_lines(tmp_path / "b.jsonl", [{"prompt": "Who?", "answer": "me"}])
    stream = domains_stream(tmp_path, [{"name": "a", "train": "a.jsonl", "test": "b.jsonl"}])
    assert stream.store.sources(stream.tasks[0].train.ids) == ["Why?"] and "1 training texts" in stream.notes[0]


def test_validation_texts_are_neither_trained_on_nor_tested(tmp_path):
    trees.write_lines(tmp_path / "a.txt", [f"text {index % 30}" for index in range(60)])  # each twice
    trees.write_lines(tmp_path / "b.txt", ["text 3", "text 29"])
    tokenizer = ByteTokenizer()
    task = domains_stream(
        tmp_path, [{"name": "a", "train": "a.txt", "test": "b.txt"}], tokenizer, validation_fraction=0.5
    ).tasks[0]
    train, validation, test = (set(texts_of(part, tokenizer)) for part in (task.train, task.validation, task.test))
    assert test == {"text 3", "text 29"} and validation and not train & validation and not test & (train | validation)


def test_the_check_after_it_finds_a_leak():
    part = Sequences(Path("a"), Ragged.of([[1, 2], [3, 4]]), np.ones(2, int), np.ones(2, int), np.zeros(2, "V16"))
    none = part.take(np.arange(0))
    check_disjoint([Parts("a", "m", part.take(np.array([0])), none, part.take(np.array([1])))])
    with pytest.raises(AssertionError, match="1 test samples"):
        check_disjoint([Parts("a", "m", none, none, part), Parts("b", "m", none, part.take(np.array([0])), none)])


# --------------------------------------------------------------------------------------------------------- cache


def prompts_file(tmp_path):
    return trees.write_lines(tmp_path / "a.jsonl", [{"prompt": f"{n}ü?", "answer": f"{n}!"} for n in range(30)])


def same(one, two) -> bool:
    fields = {field.name for field in dataclasses.fields(one)} - {"kind", "path", "lines", "digests"}
    return (
        one.kind == two.kind
        and np.array_equal(one.lines, two.lines)
        and one.digests.tolist() == two.digests.tolist()
        and all(
            np.array_equal(getattr(one, name).flat, getattr(two, name).flat)
            and np.array_equal(getattr(one, name).offsets, getattr(two, name).offsets)
            for name in fields
            if getattr(one, name) is not None
        )
    )


def test_on_a_hit_neither_the_file_is_read_nor_the_tokenizer_called(tmp_path, monkeypatch):
    path, cache = prompts_file(tmp_path), TokenCache(tmp_path / "cache")
    tokenizer, ticks = ByteTokenizer(), []
    first = encode(TextFile(path, "k"), Selection(20, 1), tokenizer, cache, lambda *at: ticks.append(at))
    assert tokenizer.texts == 40 and ticks == [(20, 40), (40, 40)]
    calls = tokenizer.calls

    def forbidden(*_):
        raise AssertionError("the file was read")

    monkeypatch.setattr(TextFile, "_open", forbidden)
    monkeypatch.setattr(TextFile, "_records", forbidden)
    again = encode(TextFile(path, "k"), Selection(20, 1), tokenizer, cache)
    assert tokenizer.calls == calls and same(first, again)
    assert again.raw_prompts.text(0) == first.raw_prompts.text(0) and again.raw_prompts.text(0).endswith("ü?")


CHANGES = {
    "tokenizer": lambda path: (ByteTokenizer(fingerprint="other"), Selection(20, 1), path),
    "number": lambda path: (ByteTokenizer(), Selection(19, 1), path),
    "seed": lambda path: (ByteTokenizer(), Selection(20, 2), path),
    "share": lambda path: (ByteTokenizer(), Selection(20, 1, REST), path),
    "content": lambda path: (ByteTokenizer(), Selection(20, 1), trees.write_lines(path, [{"text": "x"}] * 40)),
    "time": lambda path: (ByteTokenizer(), Selection(20, 1), os.utime(path, (1, 1)) or path),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_the_ids_decides_the_entry(tmp_path, change):
    path, cache = prompts_file(tmp_path), TokenCache(tmp_path / "cache")
    encode(TextFile(path, "k"), Selection(20, 1), ByteTokenizer(), cache)
    tokenizer, selection, path = CHANGES[change](path)
    encode(TextFile(path, "k"), selection, tokenizer, cache)
    assert tokenizer.calls and len(list((tmp_path / "cache").glob("a-*.safetensors"))) == 2


def test_lengths_share_an_entry(tmp_path):
    trees.write_reviews(tmp_path)
    tokenizer = ByteTokenizer()
    for options in ({"length": 20}, {"length": 90}, {"long_texts": "pack"}, {"validation_fraction": 0.25}):
        ImdbYelp(n_train=9, n_test=4, **options).stream(tmp_path, tokenizer=tokenizer)
    assert tokenizer.texts == 2 * (9 + 4)
    assert len(list((tmp_path / "cache" / "tokens").glob("*.safetensors"))) == 4


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    path, notes = prompts_file(tmp_path), []
    cache = TokenCache(tmp_path / "cache", notes.append)
    first = encode(TextFile(path, "k"), Selection(20, 1), ByteTokenizer(), cache)
    (entry,) = (tmp_path / "cache").glob("a-*.safetensors")
    content = bytearray(entry.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
    damaged = {"flipped": content, "cut": content[:-9], "empty": b"", "other": b"not what it was"}[damage]
    entry.write_bytes(bytes(damaged))
    tokenizer = ByteTokenizer()
    again = encode(TextFile(path, "k"), Selection(20, 1), tokenizer, cache)
    assert tokenizer.calls == 2 and same(first, again) and ["damaged" in note for note in notes] == [True]
    encode(TextFile(path, "k"), Selection(20, 1), tokenizer, cache)
    assert tokenizer.calls == 2
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {entry.name, ".locks"}  # nothing half-made is left


def test_an_entry_under_the_name_of_another_is_not_taken(tmp_path):
    path, cache = prompts_file(tmp_path), TokenCache(tmp_path / "cache")
    encode(TextFile(path, "k"), Selection(20, 1), ByteTokenizer(), cache)
    (one,) = (tmp_path / "cache").glob("a-*.safetensors")
    other = encode(TextFile(path, "k"), Selection(20, 2), ByteTokenizer(), cache)
    (two,) = set((tmp_path / "cache").glob("a-*.safetensors")) - {one}
    one.replace(two)
    assert same(encode(TextFile(path, "k"), Selection(20, 2), ByteTokenizer(), cache), other)


def test_a_folder_that_cannot_be_written_costs_a_note(tmp_path):
    trees.write_reviews(tmp_path)
    (tmp_path / "cache").write_text("a file where the folder should be")
    tokenizer = ByteTokenizer()
    for count in (1, 2):
        stream = ImdbYelp(n_train=9, n_test=4).stream(tmp_path, tokenizer=tokenizer)
        assert len(stream.notes) == 1 and "cannot be written" in stream.notes[0] and len(stream.tasks[0].train) == 9
        assert tokenizer.texts == count * 26


def _prepare(folder, log, ready):
    class Slow(ByteTokenizer):
        def encode(self, texts):
            with log.open("a") as stream:
                stream.write(f"{os.getpid()}\n")
            time.sleep(0.3)
            return super().encode(texts)

    ready.wait()
    encoded = encode(TextFile(folder / "a.jsonl", "k"), Selection(20, 1), Slow(), TokenCache(folder / "cache"))
    assert len(encoded) == 20


def test_of_two_processes_one_prepares(tmp_path):
    prompts_file(tmp_path)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    log = tmp_path / "log"
    processes = [context.Process(target=_prepare, args=(tmp_path, log, ready)) for _ in range(2)]
    for process in processes:
        process.start()
    ready.set()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(log.read_text().split()) == 2 and len(set(log.read_text().split())) == 1  # prompts, answers: one process


# --------------------------------------------------------------------------------------------------------- TRACE


@pytest.mark.parametrize(
    "place", ["trace", ".", "trace/TRACE-Benchmark/LLM-CL-Benchmark_5000", "LLM-CL-Benchmark_1000"]
)
def test_trace(tmp_path, place):
    written = trees.write_trace(tmp_path / place)
    tokenizer = ByteTokenizer()
    stream = Trace(prompt_length=300, answer_length=90).stream(tmp_path, tokenizer=tokenizer)
    outline = Trace().outline(tmp_path / "nowhere")
    assert [task.name for task in stream.tasks] == [task.name for task in outline.tasks] == list(trees.TRACE_TASKS)
    assert list(stream.metrics) == list(outline.metrics) == SCORES
    assert (stream.length, stream.answer_length) == (390, 90) and (outline.length, outline.answer_length) == (1536, 512)
    assert {task.n_train for task in outline.tasks} == {5000} and stream.n_classes == 8 and stream.notes == ()
    for task in stream.tasks:
        files = written[task.name]
        assert (task.n_train, task.n_test, task.validation) == (8, 4, None)
        assert stream.store.sources(task.train.ids) == [item["prompt"] for item in files["train.json"]]
        assert stream.store.answers(task.test.ids) == [item["answer"] for item in files["test.json"]]
        _, y = task.test[torch.arange(4)]
        told = [tokenizer.decode([token for token in row if token != -100]) for row in y.tolist()]
        assert told == [item["answer"] for item in files["test.json"]]


def test_some_tasks_of_trace_in_another_order_with_eval(tmp_path):
    written = trees.write_trace(tmp_path)
    names = ["20Minuten", "FOMC"]
    stream = Trace(domains=names, validation_split=True, n_train=5, n_test=2).stream(
        tmp_path, tokenizer=ByteTokenizer()
    )
    assert [task.name for task in stream.tasks] == names and stream.metrics == ("sari", "exact_match")
    for task in stream.tasks:
        assert (task.n_train, len(task.validation), task.n_test) == (5, 3, 2)
        assert stream.store.answers(task.validation.ids) == [i["answer"] for i in written[task.name]["eval.json"]]
    held = Trace(domains=names, validation_fraction=0.25).stream(tmp_path, tokenizer=ByteTokenizer()).tasks[0]
    assert (len(held.train), len(held.validation)) == (6, 2)


def test_what_trace_refuses(tmp_path):
    for options, words in (
        ({"domains": ["FOMC", "ScienceQ"]}, "did you mean 'ScienceQA'"),
        ({"domains": ["FOMC", "FOMC"]}, "names FOMC twice"),
        ({"domains": []}, "a stream needs a task"),
    ):
        with pytest.raises(RequestError, match=words):
            Trace(**options)
    with pytest.raises(RequestError, match="holds a task of TRACE") as refused:
        Trace().stream(tmp_path, tokenizer=ByteTokenizer())
    assert "TRACE-Benchmark.zip" in refused.value.hint and str(tmp_path / "trace") in refused.value.hint
    trees.write_trace(tmp_path / "trace", tasks=("FOMC", "Py150"))
    (tmp_path / "trace" / "FOMC" / "eval.json").unlink()
    assert len(Trace(domains=["FOMC"]).stream(tmp_path, tokenizer=ByteTokenizer())) == 1
    with pytest.raises(RequestError, match=r"FOMC/eval\.json is not there"):
        Trace(domains=["FOMC"], validation_split=True).stream(tmp_path, tokenizer=ByteTokenizer())
    with pytest.raises(RequestError, match=r"C-STANCE/train\.json is not there"):
        Trace().stream(tmp_path, tokenizer=ByteTokenizer())
    place = tmp_path / "trace" / "Py150" / "test.json"
    place.write_text('[\n{"prompt": "x", "answer": "y"},\n{"prompt": "x", "reply": "y"}]')
    with pytest.raises(RequestError, match=r"data_root: .*Py150/test\.json, line 3: has no field 'answer'"):
        Trace(domains=["Py150"]).stream(tmp_path, tokenizer=ByteTokenizer())


# ------------------------------------------------------------------------------------------------------ own files

FINE = {"name": "a", "train": "a.txt", "test": "b.txt"}
WRONG = {
    "none": ([], "benchmark.domains is empty"),
    "no mapping": (["imdb"], "imdb is no domain"),
    "no name": ([{"train": "a.txt"}], "has no name"),
    "no train": ([{"name": "a", "test": "b.txt"}], "has no train"),
    "unknown key": ([FINE | {"tset": "b.txt"}], "a has no key 'tset'\ndid you mean 'test'"),
    "comma": ([FINE | {"name": "a,b"}], "no name of a column"),
    "first column": ([FINE | {"name": "after_task"}], "no name of a column"),
    "twice": ([FINE, FINE], "names a twice"),
    "metric": ([FINE | {"metric": "rouge"}], "metric=rouge, which is not known\ndid you mean 'rouge_l'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_domains_that_make_no_sense(case):
    domains, words = WRONG[case]
    with pytest.raises(RequestError) as refused:
        TextDomains(domains=domains)
    assert words in str(refused.value)


@pytest.fixture
def own(tmp_path):
    trees.write_lines(tmp_path / "a.txt", ["first text", "second text"])
    trees.write_lines(tmp_path / "b.txt", ["third text"])
    trees.write_lines(tmp_path / "p.jsonl", [{"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": "b"}])
    trees.write_lines(tmp_path / "bad.jsonl", ['{"text": "fine"}', "what?"])
    trees.write_lines(tmp_path / "one.txt", ["only one"])
    return tmp_path


@pytest.mark.parametrize(
    ("domain", "options", "words"),
    [
        ({"train": "nowhere.txt"}, {}, "train of a: there is no "),
        ({"train": "a.txt", "test": "nowhere.txt"}, {}, "test of a: there is no "),
        ({"train": "bad.jsonl", "test": "b.txt"}, {}, "train of a: ROOT/bad.jsonl, line 2: is not JSON"),
        ({"train": "a.txt", "test": "p.jsonl"}, {}, "ROOT/a.txt holds texts, ROOT/p.jsonl holds prompts with answers"),
        ({"train": "a.txt", "test": "b.txt", "metric": "sari"}, {}, "metric=sari, and ROOT/a.txt holds texts"),
        ({"train": "p.jsonl"}, {"long_texts": "pack"}, "long_texts=pack: benchmark.domains: train of a: ROOT/p.jsonl"),
        ({"train": "one.txt"}, {}, "ROOT/one.txt holds one text, and a part of it was to be the test"),
    ],
)
def test_files_that_do_not_fit(own, domain, options, words):
    with pytest.raises(RequestError) as refused:
        domains_stream(own, [{"name": "a", **domain}], **options)
    assert words.replace("ROOT", str(own)) in refused.value.message


def test_a_tokenizer_whose_start_leaves_no_room_is_refused(own):
    with pytest.raises(RequestError, match="benchmark.length=4: backbone.tokenizer=bytes begins every text with 4"):
        domains_stream(own, [FINE], ByteTokenizer((250, 251, 252, 253)), length=4)


def test_paths_are_looked_for_below_root_then_here_then_data_root(own, tmp_path_factory, monkeypatch):
    here, data = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("data")
    monkeypatch.chdir(here)
    tokenizer = ByteTokenizer()

    def trained(root):
        stream = TextDomains(domains=[FINE], root=root).stream(data, tokenizer=tokenizer)
        return texts_of(stream.tasks[0].train, tokenizer)

    for folder, text in ((data, "in data"), (here, "is here")):
        trees.write_lines(folder / "a.txt", [text])
        trees.write_lines(folder / "b.txt", ["third text"])
        assert trained(None) == [text]
    assert trained(str(own)) == ["first text", "second text"]


def test_an_outline_needs_no_file_and_looks_where_there_is_one(own):
    nowhere = own / "nowhere"
    planned = TextDomains(domains=[FINE, {"name": "b", "train": "x.jsonl"}], n_train=50, validation_fraction=0.1)
    outline = planned.outline(nowhere)
    assert [(task.n_train, task.n_test) for task in outline.tasks] == [(45, 0)] * 2 and outline.length == 128
    asked = TextDomains(domains=[{"name": "b", "train": "x.jsonl", "metric": "sari"}]).outline(nowhere)
    assert (asked.length, asked.answer_length, asked.metrics) == (1536, 512, ("sari",))
    there = TextDomains(domains=[{"name": "b", "train": "p.jsonl"}], root=str(own)).outline(nowhere)
    assert (there.length, there.answer_length, there.metrics) == (1536, 512, ("exact_match",))
    told = TextDomains(domains=[{"name": "b", "train": "p.jsonl", "metric": "token_accuracy"}], root=str(own))
    assert told.outline(nowhere).answer_length is None and told.outline(nowhere).length == 1536
    with pytest.raises(RequestError, match="b holds prompts with answers, which are not packed"):
        TextDomains(domains=[{"name": "b", "train": "p.jsonl"}], root=str(own), long_texts="pack").outline(nowhere)


@pytest.mark.parametrize("name", ["ImdbYelp", "TextDomains", "Trace"])
def test_a_key_is_in_the_file_the_dataclass_and_the_constructor(name):
    schema = next(schema for schema in BENCHMARKS if schema.__name__ == name)
    built = getattr(streams, name)
    node = yaml.safe_load((CONFIGS / f"{built.name}.yaml").read_text())
    assert node.pop("_target_") == schema()._target_ == f"{built.__module__}.{name}"
    fields = dataclasses.asdict(schema())
    del fields["_target_"]
    defaults = {key: item.default for key, item in inspect.signature(built).parameters.items()}
    assert node == fields == defaults | ({"domains": []} if name == "TextDomains" else {})


def test_cl_data_knows_the_texts(tmp_path, capsys, monkeypatch):
    from cl_runner.benchmarks.cli import main

    monkeypatch.setattr(downloads, "_load", lambda *_: pytest.fail("check fetches nothing"))
    where = ["--data-root", str(tmp_path)]
    for name, hint in (("imdb_yelp", "cl-data prepare imdb_yelp"), ("trace", "TRACE-Benchmark.zip")):
        assert main(["check", name, *where]) == 2
        told = capsys.readouterr().err
        assert hint in told and len(told.splitlines()) == 2
    assert main(["prepare", "trace", *where]) == 2
    trees.write_reviews(tmp_path)
    trees.write_trace(tmp_path / "trace")
    capsys.readouterr()
    assert main(["check", "imdb_yelp", *where]) == main(["prepare", "imdb_yelp", *where]) == 0
    assert main(["check", "trace", *where]) == 0
    told = capsys.readouterr().out
    assert told.count("imdb 24 + 8, yelp 24 + 8 texts") == 2 and "20Minuten 8 + 3 + 4 examples" in told
    assert main(["list", *where]) == 0
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("│ ")}
    assert "found" in rows["imdb_yelp"] and "found" in rows["trace"]
    path = tmp_path / "text" / "imdb_test.jsonl"
    path.write_text(path.read_text() + json.dumps({"review": "x"}) + "\n")
    assert main(["check", "imdb_yelp", *where]) == 2
    assert f"data_root: {path}, line 9: has no field 'text'" in capsys.readouterr().err
