"""Names that came from data are shown as they are, on every page: as text, never as markup."""

from __future__ import annotations

import base64
import gzip
import html.parser
import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cl_runner import cli
from cl_runner.reports.cli import main as report
from cl_runner.reports.tables import escape_latex

QUICK = ("trainer.epochs=1", "trainer.threads=1", "trainer.device=cpu", "quiet=true", "output_root=out",
         "backbone=small_cnn", "backbone.width=8", "adapter=none")  # fmt: skip
# as folders may be called, which hold no slash
FOLDERS = ("<script>alert(1)<", "\"><img src=x onerror=alert(1)>", "a'b&amp;\"c", "$\\alpha_1%#{}~^$", "[red]x[bold]",
           "=1+1", "{{7*7}}${seed}", "line\nbreak")  # fmt: skip
SCRIPT = '</script><script>alert("x")</script>'


class Page(html.parser.HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def harmless(place: Path, scripts: int, names: tuple[str, ...]) -> Page:
    """Reads a page, whose scripts are so many and ours alone, and which shows these names."""
    page = Page(place.read_text(encoding="utf-8"))
    found = [tag for tag, _ in page.elements]
    assert found.count("script") == scripts, "ours alone"
    assert not {"img", "iframe", "object", "embed", "base", "form", "link", "meta2", "b1"} & set(found)
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")], (tag, attributes)
        assert not [value for value in attributes.values() if "javascript:" in str(value).lower()], (tag, attributes)
        assert tag == "script" or "src" not in attributes
    for name in names:
        assert name in page.text, f"{name!r} is not shown"
    return page


def photos(folder: Path, count: int, grey: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (8, 8), (grey, 9 * index, 20)).save(folder / f"{index}.png")


@pytest.fixture
def folders(elsewhere, tmp_path):
    for number, name in enumerate(FOLDERS):
        photos(tmp_path / "tree" / "train" / name, 4, 20 * number)
        photos(tmp_path / "tree" / "test" / name, 2, 20 * number)
    return tmp_path


def run(*typed: str) -> Path:
    before = set(Path("out").rglob("DONE"))
    first = typed[:2] if typed[0] == "--config-dir" else ()
    assert cli.execute([*first, *QUICK, *typed[len(first) :]]) == 0
    (done,) = set(Path("out").rglob("DONE")) - before
    return done.parent


def test_classes_named_by_folders(folders, capsys):
    own = folders / "own" / "experiment"
    own.mkdir(parents=True)
    name = 'it\'s <b>bold</b> & "so"'
    (own / "q.yaml").write_text("# @package _global_\nseed: 3\n")
    folder = run("benchmark=split_folder", f"benchmark.root={folders / 'tree'}", "benchmark.n_tasks=4",
                 "benchmark.image_size=8", "benchmark.validation_fraction=0")  # fmt: skip
    harmless(folder / "report.html", 1, FOLDERS)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"experiment": name, "adapter": SCRIPT}))
    assert report([str(folder), "--format", "html", "--out", "page.html"]) == 0
    harmless(Path("page.html"), 4, (name, SCRIPT))
    packed = re.search(r'id="data">([^<]*)</script>', Path("page.html").read_text())[1]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert {one["name"] for one in data[0]["classes"]} == set(FOLDERS), "as they are; base64 cannot end the element"
    capsys.readouterr()
    assert report([str(folder), "--format", "latex"]) == 0
    assert escape_latex(name) in capsys.readouterr().out


def test_domains_tasks_and_prompts(elsewhere, tmp_path):
    domain = f"{SCRIPT}'\""
    classes = [SCRIPT, "<svg onload=alert(1)>", "[/red] & $x$"]
    for place in ("one", "two"):
        for number, name in enumerate("abc"):
            photos(tmp_path / place / "train" / name, 3, 60 * number)
            photos(tmp_path / place / "test" / name, 2, 60 * number)
    (tmp_path / "own" / "benchmark").mkdir(parents=True)
    wanted = [{"name": domain, "root": str(tmp_path / "one"), "names": classes},
              {"name": "<i>two</i>", "root": str(tmp_path / "two")}]  # fmt: skip
    content = {"defaults": ["mtil", "_self_"], "domains": wanted, "image_size": 8}
    (tmp_path / "own" / "benchmark" / "evil.yaml").write_text(yaml.safe_dump(content))
    folder = run("--config-dir", "own", "benchmark=evil")
    harmless(folder / "report.html", 1, (domain, "<i>two</i>", *classes))
    assert report([str(folder), "--format", "html", "--out", "page.html"]) == 0
    harmless(Path("page.html"), 4, ())
    assert not (tmp_path / "cache").exists() and not list(tmp_path.glob("*alert*"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b & 5 %", r"a\_b \& 5 \%"),
        ("\\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("$x^2$ ~ #1", r"\$x\textasciicircum{}2\$ \textasciitilde{} \#1"),
        ("one\n\ntwo\r\x07", "one two"),
        ("<a> | b", r"\textless{}a\textgreater{} \textbar{} b"),
    ],
)
def test_latex(text, shown):
    assert escape_latex(text) == shown
