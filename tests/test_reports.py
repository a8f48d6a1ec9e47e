"""cl-report over run folders that the recording side wrote."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import time

import pandas as pd
import pytest
import yaml
from synthetic_runs import write_sweep

from cl_runner.recording import RunFolder
from cl_runner.reports.cli import main

IDENTITY = {"experiment": "e_1", "benchmark": "split_digits", "backbone": "small_cnn", "strategy": "naive"}


@pytest.fixture
def runs(tmp_path):
    """Three seeds of one setting, one run of another rank, one joint run without bwt, one that failed."""

    def write(name, seed, rank=4, status="done", adapter="convlora", **summary):
        config = {"seed": seed, "output_root": name, "data_root": name, "adapter": {"rank": rank, "alpha": 1}}
        folder = RunFolder.create(tmp_path / "sweep" / name, config, [])
        folder.write_summary({**IDENTITY, "adapter": adapter, "status": status, "seed": seed, **summary})
        return folder

    for seed, acc in enumerate((0.7, 0.8, 0.9)):
        write(f"a{seed}", seed, acc=acc, bwt=-0.1 * seed, forgetting=0.1 * seed, parameter_growth=0.5, wall_seconds=10)
    write("b", 0, rank=8, acc=0.6, bwt=0.0, forgetting=0.0, parameter_growth=0.0, wall_seconds=20)
    write("c", 0, adapter="none", acc=0.5)
    write("d", 0, adapter="none", acc=0.1, status="failed")
    return tmp_path / "sweep"


def read(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr()


def test_runs_that_differ_only_in_their_seed_share_a_row(runs, capsys):
    captured = read(capsys, runs, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert [(row["adapter"], row["seeds"], row["settings"]) for row in rows] == [
        ("convlora", "3", "adapter.rank=4"),
        ("convlora", "1", "adapter.rank=8"),
        ("none", "1", ""),
    ]
    first, second, joint = rows
    assert float(first["acc"]) == pytest.approx(0.8)
    assert float(first["acc_std"]) == pytest.approx(0.1)  # sqrt(((-0.1)**2 + 0 + 0.1**2) / 2), n - 1 = 2
    assert float(first["bwt"]) == pytest.approx(-0.1)
    assert float(first["forgetting"]) == pytest.approx(0.1)
    assert second["acc_std"] == ""  # one seed has no spread
    assert (float(second["bwt"]), float(second["growth"]), float(second["seconds"])) == (0.0, 0.0, 20.0)
    assert (joint["bwt"], joint["growth"], joint["seconds"]) == ("", "", "")  # not applicable is not 0
    assert "d left out: its status is failed" in captured.err


def test_where_a_run_computed_does_not_set_it_apart(tmp_path, capsys):
    for seed, device in enumerate(("cpu", "cuda")):
        config = {"seed": seed, "trainer": {"device": device, "threads": seed + 1, "epochs": 2}}
        typed = [f"seed={seed}", f"trainer.device={device}", "trainer.epochs=2"]
        folder = RunFolder.create(tmp_path / device, config, typed)
        folder.write_summary({**IDENTITY, "adapter": "lora", "status": "done", "seed": seed, "acc": 0.5})
    (row,) = json.loads(read(capsys, tmp_path, "--format", "json").out)
    assert row["seeds"] == 2 and "device" not in row["settings"]


def test_table(runs, capsys):
    text = read(capsys, runs).out
    assert "\x1b" not in text
    assert "benchmark split_digits" in text.splitlines()[0]  # shared by all rows: said once
    assert "80.00 ± 10.00" in text
    (joint,) = [line for line in text.splitlines() if " none " in line]
    assert "50.00" in joint and "±" not in joint and joint.count("N/A") == 4
    assert len([line for line in text.splitlines() if "adapter.rank=" in line]) == 2


def test_json_names_the_folders(runs, capsys):
    rows = json.loads(read(capsys, runs, "--format", "json").out)
    assert [len(row["folders"]) for row in rows] == [3, 1, 1]
    assert rows[0]["folders"][0] == str(runs / "a0")
    assert rows[1]["acc_std"] is None
    assert rows[2]["bwt"] is None


def latex(capsys, *paths):
    """The cells of each row, headings first, and the column letters."""
    lines = read(capsys, *paths, "--format", "latex").out.splitlines()
    assert [line for line in lines if not line.endswith(r"\\")][1:] == [
        r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"
    ]  # fmt: skip
    columns = lines[0].removeprefix(r"\begin{tabular}{").removesuffix("}")
    body = [line.removesuffix(r" \\").split(" & ") for line in lines if line.endswith(r"\\")]
    assert {len(row) for row in body} == {len(columns)}
    return body, columns


def test_latex_is_escaped_and_rectangular(runs, capsys):
    (heads, *body), columns = latex(capsys, runs)
    assert columns == "l" * 6 + "r" * 6 and heads[6:8] == ["$n$", r"acc \%"]
    assert [row[0] for row in body] == [r"e\_1"] * 3 and [row[6] for row in body] == ["3", "1", "1"]
    assert r"80.00 $\pm$ 10.00" in body[0][7] and body[2][7] == "50.00"
    assert body[2][8:] == ["--"] * 4, "not applicable is not 0"


def test_the_best_of_each_column_is_bold_within_its_benchmark(tmp_path, capsys):
    def write(name, benchmark, acc, forgetting, adapter):
        folder = RunFolder.create(tmp_path / name, {"adapter": {"name": name}}, [])
        summary = {**IDENTITY, "benchmark": benchmark, "adapter": adapter, "status": "done", "seed": 0}
        folder.write_summary({**summary, "acc": acc, "bwt": -forgetting, "forgetting": forgetting})

    write("a", "hard", 0.2, 0.3, "lora")
    write("b", "hard", 0.4, 0.1, "convlora")
    write("c", "hard", 0.400001, 0.5, "codyra")  # the same to the reader, and as bold
    write("d", "easy", 0.9, 0.0, "lora")
    (heads, *body), _ = latex(capsys, tmp_path)
    acc, bwt, forgetting = (heads.index(name) for name in (r"acc \%", "bwt", "forgetting"))
    bold = {
        row[3]: [row[at].startswith(r"\textbf{") for at in (acc, bwt, forgetting)] for row in body if row[1] == "hard"
    }
    assert bold == {"lora": [False] * 3, "convlora": [True, True, True], "codyra": [True, False, False]}
    assert not any("textbf" in cell for row in body if row[1] == "easy" for cell in row), (
        "one row is not the best of any"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX is installed")
def test_latex_compiles(runs, capsys, tmp_path):
    text = read(capsys, runs, "--format", "latex").out
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + text + r"\end{document}"
    (tmp_path / "x.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


# ----------------------------------------------------------------------------------------- many runs


def test_mean_deviation_and_n_are_those_of_pandas(tmp_path, capsys):
    write_sweep(tmp_path / "sweep", 60, seeds=4, n_tasks=2)
    told = json.loads(read(capsys, tmp_path / "sweep", "--format", "json").out)
    table = pd.DataFrame(
        {
            **json.loads(file.read_text()),
            "rank": yaml.safe_load((file.parent / "config.yaml").read_text())["adapter"]["rank"],
        }
        for file in sorted((tmp_path / "sweep").glob("*/summary.json"))
    )
    keys = {"acc": "acc", "bwt": "bwt", "fwt": "fwt", "growth": "parameter_growth", "seconds": "wall_seconds"}
    keys |= {"forgetting": "forgetting", "memory": "peak_memory_bytes", "stored": "stored_parameters"}
    grouped = table.groupby(["adapter", "rank"], sort=False)[list(keys.values())]
    means, deviations, counts = grouped.mean(), grouped.std(), grouped.size()
    assert len(told) == len(means) == 15
    for row in told:
        index = (row["adapter"], int(row["settings"].removeprefix("adapter.rank=")))
        assert row["seeds"] == counts[index] == 4
        for name, key in keys.items():
            mean, deviation = means.loc[index, key], deviations.loc[index, key]
            assert row[name] is None if pd.isna(mean) else row[name] == pytest.approx(mean, rel=1e-12)
            assert (
                row[f"{name}_std"] is None
                if pd.isna(mean)
                else row[f"{name}_std"] == pytest.approx(deviation, rel=1e-9)
            )
    assert any(row["fwt"] is None for row in told) and any(row["fwt"] is not None for row in told)


def test_a_thousand_runs_take_seconds(tmp_path, capsys):
    """Measured in CPU time, which a busy machine does not change; 0.6 s and 3.1 s on a core of an AMD EPYC."""
    write_sweep(tmp_path / "sweep", 1000)
    started = time.process_time()
    text = read(capsys, tmp_path / "sweep").out
    table = time.process_time()
    read(capsys, tmp_path / "sweep", "--format", "html", "--out", tmp_path / "x.html")
    page = time.process_time()
    assert len([line for line in text.splitlines() if "adapter.rank=" in line]) == 334
    assert table - started < 10 and page - table < 10
    assert (tmp_path / "x.html").stat().st_size < 5e6


@pytest.mark.parametrize("form", ["table", "csv", "json", "latex"])
def test_out_writes_the_same_to_a_file(runs, capsys, tmp_path, form):
    shown = read(capsys, runs, "--format", form).out
    assert read(capsys, runs, "--format", form, "--out", tmp_path / "file").out == ""
    assert (tmp_path / "file").read_text(encoding="utf-8") == shown


def test_a_folder_named_twice_counts_once(runs, capsys):
    captured = read(capsys, runs, runs / "a0", runs, "--format", "json")
    assert [row["seeds"] for row in json.loads(captured.out)] == [3, 1, 1]
    assert "newer" not in captured.err


def test_a_repeated_seed_counts_once_and_the_newer_run_wins(runs, capsys):
    config = {"seed": 0, "adapter": {"rank": 4, "alpha": 1}}
    again = RunFolder.create(runs / "again", config, [])
    again.write_summary({**IDENTITY, "adapter": "convlora", "status": "done", "seed": 0, "acc": 0.1})
    later = (runs / "a0" / "summary.json").stat().st_mtime + 10
    os.utime(again.path / "summary.json", (later, later))
    captured = read(capsys, runs, "--format", "json")
    row = json.loads(captured.out)[0]
    assert row["seeds"] == 3
    assert row["acc"] == pytest.approx((0.1 + 0.8 + 0.9) / 3)
    assert "a0 left out" in captured.err and "newer" in captured.err


def test_runs_without_a_configuration_are_never_pooled(runs, capsys):
    for name in ("a0", "a1"):
        (runs / name / "config.yaml").unlink()
    rows = json.loads(read(capsys, runs, "--format", "json").out)
    assert sorted(row["seeds"] for row in rows) == [1, 1, 1, 1, 1]


def test_a_damaged_summary_is_named_and_the_rest_is_shown(runs, capsys):
    (runs / "b" / "summary.json").write_text('{"status": "do')
    captured = read(capsys, runs, "--format", "json")
    assert len(json.loads(captured.out)) == 2
    assert "b left out: summary.json is damaged" in captured.err


def test_what_cannot_be_met_ends_with_2_and_says_why(runs, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, said in (
        ([], "no PATH given"),
        (["missing"], "missing does not exist"),
        ([tmp_path / "file"], "is not a folder"),
        ([tmp_path / "empty"], "no finished run found"),
        ([runs, "--out", tmp_path / "no" / "file"], "--out: cannot write"),
        ([runs, "--format", "html"], "--out report.html"),
        ([runs, "--format", "html", "--out", tmp_path / "no" / "file"], "--out: cannot write"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert said in captured.err
        lines = [line for line in captured.err.splitlines() if "left out" not in line]
        assert 1 <= len(lines) <= 2


def test_an_unknown_format_is_refused(runs, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(runs), "--format", "xlsx"])
    assert caught.value.code == 2
    assert "latex" in capsys.readouterr().err
