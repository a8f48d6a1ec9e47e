"""Files of texts: what is read, and that whatever cannot be read is refused by file and line."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import text_trees as trees

from cl_runner.benchmarks.text.files import TextFile
from cl_runner.errors import RequestError

KEY = "benchmark.domains: train of mine"
GOOD = '{"text": "a good film"}\n'


def written(tmp_path, name, content):
    path = tmp_path / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def read(path, kind=None, chosen=None):
    return TextFile(path, KEY, kind).read(lambda count: np.arange(count) if chosen is None else np.array(chosen))[1]


PAIRS = [{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": "böse\nFrage", "answer": "nein"}]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "texts", "answers", "lines"),
    [
        ("a.jsonl", '{"text": "one", "label": 1}\n\n  \n{"text": " two\\n"}', ["one", " two\n"], [], [1, 4]),
        ("a.json-lines", GOOD * 2, ["a good film"] * 2, [], [1, 2]),
        ("A.JSONL", "\ufeff" + GOOD, ["a good film"], [], [1]),
        ("a.txt", "one line\r\n\n\t\n  two \x0c \u2028 lines \nlast", ["one line", "  two \x0c \u2028 lines ", "last"],
         [], [1, 4, 5]),
        ("a.jsonl", "".join(json.dumps(pair) + "\n" for pair in PAIRS), ["1 + 1 =", "böse\nFrage"], ["2", "nein"],
         [1, 2]),
        ("a.json", json.dumps(PAIRS), ["1 + 1 =", "böse\nFrage"], ["2", "nein"], [1, 1]),
        ("a.json", "\n" + json.dumps(PAIRS, indent=2, ensure_ascii=False), ["1 + 1 =", "böse\nFrage"], ["2", "nein"],
         [3, 7]),
        ("a.json", '[{"text": "x"} , {"text": "y"}]\n\n', ["x", "y"], [], [1, 1]),
    ],
)  # fmt: skip
def test_texts_and_their_lines(tmp_path, name, content, texts, answers, lines, suffix):
    name = name + suffix.upper() if name.isupper() else name + suffix
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if suffix else content.encode())
    found = read(path)
    assert (found.texts, found.answers, found.lines.tolist()) == (texts, answers, lines)
    assert found.kind == ("answer" if answers else "text") == TextFile(path, KEY).first_kind()
    assert TextFile(path, KEY).check() == TextFile(path, KEY).count() == len(texts)


def test_the_chosen_texts_come_in_the_order_asked_for(tmp_path):
    path = written(tmp_path, "a.txt", "".join(f"text {index}\n\n" for index in range(9)))
    found = read(path, chosen=[7, 0, 3])
    assert found.texts == ["text 7", "text 0", "text 3"] and found.lines.tolist() == [15, 1, 7]


SHORT = gzip.compress(b"".join(b'{"text": "%d %s"}\n' % (index, b"x" * (index % 50)) for index in range(3000)))

BAD = {
    "empty": ("a.jsonl", "", 1, "holds no text"),
    "blank": ("a.jsonl", "\n \n\n", 1, "holds no text"),
    "empty txt": ("a.txt", "\n\n", 1, "holds no text"),
    "empty gz": ("a.jsonl.gz", "", 1, "holds no text"),
    "empty list": ("a.json", "[]", 1, "holds no text"),
    "empty json": ("a.json", "", 1, "holds no text"),
    "not json": ("a.jsonl", GOOD + "a good film\n" + GOOD, 2, "not JSON"),
    "cut json": ("a.jsonl", GOOD + GOOD + '{"text": "a go', 3, "not JSON"),
    "two objects": ("a.jsonl", "\n" + GOOD.strip() + GOOD, 2, "not JSON"),
    "digits": ("a.jsonl", GOOD + '{"text": ' + "1" * 5000 + "}", 2, "not JSON"),
    "brackets": ("a.jsonl", GOOD + "[" * 100_000, 2, "not JSON"),
    "array": ("a.jsonl", GOOD + '["a good film"]', 2, "no JSON object"),
    "number": ("a.jsonl", "7\n" + GOOD, 1, "no JSON object"),
    "other field": ("a.jsonl", GOOD + '{"review": "x", "label": 1}', 2, "no field 'text'; its fields: review, label"),
    "no field": ("a.jsonl", "{}", 1, "no field 'text'"),
    "no answer": ("a.jsonl", '{"prompt": "p", "answer": "a"}\n{"prompt": "p"}', 2, "no field 'answer'"),
    "no prompt": ("a.jsonl", '{"answer": "a"}', 1, "no field 'prompt'"),
    "mixed": ("a.jsonl", GOOD + '{"prompt": "p", "answer": "a"}', 2, "no field 'text'"),
    "no string": ("a.jsonl", GOOD + '{"text": 5}', 2, "'text' is no text: 5"),
    "null": ("a.jsonl", '{"prompt": "p", "answer": null}', 1, "'answer' is no text"),
    "empty text": ("a.jsonl", GOOD * 3 + '{"text": " \\n"}', 4, "'text' is empty"),
    "empty answer": ("a.jsonl", '{"prompt": "p", "answer": ""}', 1, "'answer' is empty"),
    "surrogate": ("a.jsonl", GOOD + '{"text": "\\ud800"}', 2, "surrogate"),
    "latin-1": ("a.jsonl", GOOD.encode() + '{"text": "böse"}\n'.encode("latin-1"), 2, "not UTF-8"),
    "latin-1 txt": ("a.txt", "gut\n\nböse\n".encode("latin-1"), 3, "not UTF-8"),
    "utf-16": ("a.txt", "gut".encode("utf-16"), 1, "not UTF-8"),
    "latin-1 list": ("a.json", '[{"text": "gut"},\n{"text": "böse"}]'.encode("latin-1"), 2, "not UTF-8"),
    "no list": ("a.json", "\n" + GOOD * 2, 2, "no JSON list; JSON lines are called .jsonl"),
    "list of texts": ("a.json", '[\n{"text": "a"},\n"b"]', 3, "no JSON object"),
    "list cut": ("a.json", '[\n{"text": "a"},\n{"text": "b', 3, "not JSON"),
    "list open": ("a.json", '[{"text": "a"}\n', 2, "cut short"),
    "list comma": ("a.json", '[{"text": "a"},\n]', 2, "comma"),
    "list no comma": ("a.json", '[{"text": "a"}\n{"text": "b"}]', 2, "comma"),
    "list and more": ("a.json", '[{"text": "a"}]\n\n[1]', 3, "follows"),
    "list field": ("a.json", '[\n\n{"prompt": "a", "answer": "b"},\n{"prompt": "a", "label": "b"}]', 4, "'answer'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_file_and_line(tmp_path, case):
    name, content, line, reason = BAD[case]
    path = written(tmp_path, name, content)
    with pytest.raises(RequestError) as refused:
        TextFile(path, KEY).check()
    message = refused.value.message
    assert message.startswith(f"{KEY}: {path}, line {line}: ") and reason in message, message
    assert refused.value.hint and len(str(refused.value).splitlines()) == 2


def test_a_line_that_was_not_chosen_is_looked_into_as_well(tmp_path):
    path = written(tmp_path, "a.jsonl", GOOD * 5 + "{}\n" + GOOD)
    with pytest.raises(RequestError, match="line 6"):
        read(path, chosen=[0])


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_a_compressed_file_that_was_cut_is_refused(tmp_path, keep):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(SHORT[: int(keep * len(SHORT))])
    with pytest.raises(RequestError, match=r"a\.jsonl\.gz, line \d+: the file is cut short or damaged"):
        TextFile(path, KEY).check()


def test_what_only_calls_itself_compressed_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_text(GOOD)
    with pytest.raises(RequestError, match="line 1: the file is cut short or damaged"):
        TextFile(path, KEY).check()


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(RequestError, match="nowhere.jsonl does not exist"):
        TextFile(tmp_path / "nowhere.jsonl", KEY).check()
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(RequestError, match="cannot read .*folder.jsonl"):
        TextFile(tmp_path / "folder.jsonl", KEY).check()
    with pytest.raises(RequestError, match="a.csv") as refused:
        TextFile(tmp_path / "a.csv", KEY)
    assert ".jsonl" in refused.value.hint


def test_a_kind_that_was_asked_for_is_held_to(tmp_path):
    path = written(tmp_path, "a.jsonl", json.dumps({"prompt": "p", "answer": "a", "text": "t"}))
    assert read(path).kind == "text" and read(path, "answer").texts == ["p"]
    path = trees.write_lines(tmp_path / "b.jsonl", PAIRS)
    with pytest.raises(RequestError, match=r"line 1: has no field 'text'") as refused:
        read(path, "text")
    assert '{"text": ...}' in refused.value.hint and "prompt" not in refused.value.hint
