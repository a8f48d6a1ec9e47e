"""Keys of text streams that another choice puts out of use: typed they are refused, inherited they are not."""

from __future__ import annotations

import pytest
import text_trees as trees
from text_trees import ByteTokenizer

from cl_runner.benchmarks.text.files import PLAIN
from cl_runner.benchmarks.text.streams import TextDomains
from cl_runner.config.checks import settle
from cl_runner.config.compose import compose
from cl_runner.errors import RequestError

PLAIN_A = "{name: a, train: a.TXT.gz, test: b.txt}"
PLAIN_DRAWN = "{name: b, train: b.txt}"
SCORED = "{name: c, train: c.jsonl, test: d.jsonl, metric: sari}"
UNKNOWN = "{name: d, train: c.jsonl, test: d.jsonl}"
COUNTED = "{name: e, train: c.jsonl, test: d.jsonl, metric: token_accuracy}"


def own(*domains: str) -> list[str]:
    return ["backbone=gpt2", "benchmark=text_domains", f"benchmark.domains=[{','.join(domains)}]"]


TRACE, XTAIL = ["backbone=gpt2", "benchmark=trace"], ["backbone=clip_vit_b16", "benchmark=xtail"]
IMDB = ["backbone=gpt2", "benchmark=imdb_yelp"]
ALL = ["benchmark.n_train=null", "benchmark.n_test=null"]
HELD, BY_SPLIT = ["benchmark.validation_fraction=0.1"], ["benchmark.validation_split=true"]
SEED, PROMPT, ANSWER = "benchmark.split_seed=3", "benchmark.prompt_length=64", "benchmark.answer_length=32"
LENGTH, REFUSE = "benchmark.length=64", "benchmark.long_texts=refuse"
EPOCHS, BEST = "trainer.task_epochs=[1,2]", "trainer.restore_best=true"

REFUSED = [
    (own(PLAIN_A), PROMPT, "every domain holds texts"),
    (own(PLAIN_A, PLAIN_DRAWN), ANSWER, "every domain holds texts"),
    (own(SCORED), LENGTH, "every domain holds prompts with answers"),
    (own(PLAIN_A), SEED, "nothing is drawn"),
    (own(UNKNOWN, SCORED), SEED, "nothing is drawn"),
    (TRACE, SEED, "nothing is drawn"),
    ([*TRACE, *BY_SPLIT], SEED, "nothing is drawn"),
    ([*IMDB, *ALL], SEED, "nothing is drawn"),
    ([*TRACE, *BY_SPLIT], *HELD, "benchmark.validation_split=true validates"),
    ([*XTAIL, *BY_SPLIT], *HELD, "benchmark.validation_split=true validates"),
    (["backbone=clip_vit_b16", "benchmark=mtil", *BY_SPLIT], *HELD, "benchmark.validation_split=true validates"),
    ([*XTAIL, "strategy=zero_shot"], EPOCHS, "strategy=zero_shot trains nothing"),
    ([*XTAIL, "strategy=rail"], EPOCHS, "strategy=rail trains nothing"),
    (TRACE, BEST, "without a validation split"),
]
USED = [
    (own(PLAIN_A), LENGTH),
    (own(PLAIN_A), REFUSE),
    (own(SCORED), PROMPT),
    (own(SCORED), ANSWER),
    (own(SCORED), REFUSE),  # prompts and answers that are too long are refused as well
    *((own(PLAIN_A, SCORED), key) for key in (LENGTH, PROMPT, ANSWER)),
    *((own(domain), key) for domain in (UNKNOWN, COUNTED) for key in (LENGTH, PROMPT, ANSWER)),
    *((own(domain, UNKNOWN), key) for domain in (PLAIN_A, SCORED) for key in (LENGTH, PROMPT, ANSWER)),
    (own(PLAIN_A, PLAIN_DRAWN), SEED),
    ([*own(PLAIN_A), *HELD], SEED),
    ([*own(PLAIN_A), "benchmark.n_test=5"], SEED),
    ([*TRACE, "benchmark.n_train=5"], SEED),
    ([*TRACE, "benchmark.n_train=5", *BY_SPLIT], SEED),
    ([*TRACE, *HELD], SEED),
    (IMDB, SEED),
    (TRACE, *HELD),
    ([*TRACE, *HELD], "benchmark.validation_split=false"),
    *(([*which, *BY_SPLIT], BEST) for which in (TRACE, XTAIL)),
    ([*TRACE, *HELD], BEST),
    (TRACE, EPOCHS),
]


@pytest.mark.parametrize(("given", "typed", "reason"), REFUSED)
def test_a_typed_key_that_nothing_uses_is_refused_and_an_inherited_one_is_not(given, typed, reason):
    composed = [*given, typed]
    with pytest.raises(RequestError) as refused:
        settle(compose(composed), composed)
    message = refused.value.message
    assert message.startswith(f"{typed.split('=')[0]} has no use here: ") and reason in message
    assert refused.value.hint
    settle(compose(composed), given)


@pytest.mark.parametrize(("given", "typed"), USED)
def test_a_typed_key_that_something_uses_is_taken(given, typed):
    composed = [*given, typed]
    settle(compose(composed), composed)


def test_an_inherited_fraction_beside_a_validation_split_draws_nothing():
    with pytest.raises(RequestError, match=r"benchmark\.split_seed has no use here: .*nothing is drawn"):
        settle(compose([*TRACE, *BY_SPLIT, *HELD, SEED]), [*TRACE, *BY_SPLIT, SEED])


@pytest.mark.parametrize("domains", ["[3]", "[{name: a}]", "[]", "[{train: null}]"])
def test_domains_that_make_no_sense_are_left_to_the_benchmark(domains):
    given = ["benchmark=text_domains", f"benchmark.domains={domains}", PROMPT, LENGTH]
    assert settle(compose(given), given).benchmark.prompt_length == 64


def test_what_the_configuration_takes_for_plain_text_is_read_as_plain_text(tmp_path):
    assert PLAIN == (".txt",)
    trees.write_lines(tmp_path / "a.txt", [{"prompt": "p", "answer": "a"}])
    asked = TextDomains(domains=[{"name": "a", "train": "a.txt"}], root=str(tmp_path))
    assert asked.outline(tmp_path).metrics == ("token_accuracy",)


@pytest.mark.parametrize(
    ("file", "options", "notes"),
    [
        ("texts", {"prompt_length": 64}, ["benchmark.prompt_length=64 has no use here: every domain holds texts"]),
        ("texts", {"length": 64, "long_texts": "refuse"}, []),
        ("prompts", {"length": 64}, ["benchmark.length=64 has no use here: every domain holds prompts with answers"]),
        ("prompts", {"prompt_length": 64, "answer_length": 32}, []),
        ("both", {"length": 64, "prompt_length": 64}, []),
    ],
)
def test_where_only_the_files_say_it_a_note_does(tmp_path, file, options, notes):
    for part, count in (("train", 4), ("test", 2)):
        trees.write_lines(tmp_path / f"texts_{part}.jsonl", [{"text": f"{part} {n}"} for n in range(count)])
        pairs = [{"prompt": f"{part} {n}", "answer": "yes"} for n in range(count)]
        trees.write_lines(tmp_path / f"prompts_{part}.jsonl", pairs)
    names = ("texts", "prompts") if file == "both" else (file,)
    domains = [{"name": name, "train": f"{name}_train.jsonl", "test": f"{name}_test.jsonl"} for name in names]
    stream = TextDomains(domains=domains, root=str(tmp_path), **options).stream(tmp_path, tokenizer=ByteTokenizer())
    assert list(stream.notes) == notes
