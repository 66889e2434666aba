"""What is told of a benchmark's result: means, lost rows, the README's tables, and what is no result."""

import copy
import json

import pytest
from bench_helpers import TINY

from benchmarks import report, run

pytest_plugins = ["bench_helpers"]

BEGIN, END = report.markers("bench")


@pytest.fixture
def result(round_machine):
    return run.run([TINY], threads=1, seconds=0.0, least=2, command="a test")


def made_up(cell, name, mode, required=True, **ratios):
    peers = {
        peer: {"ratio": ratio, "median_ms": ratio, "q1_ms": ratio - 0.01, "q3_ms": ratio + 0.01}
        for peer, ratio in {**ratios, "rnnfast": 1.0}.items()
    }
    return {"cell": cell, "name": name, "mode": mode, "required": required, "peers": peers}


def test_geometric_means_are_of_the_required_rows_alone_and_name_the_worst():
    rows = [
        made_up("LSTM", "one", "inference", **{"torch.nn": 1.0, "onnxruntime": 0.5}),
        made_up("LSTM", "two", "inference", **{"torch.nn": 4.0, "onnxruntime": 8.0}),
        made_up("LSTM", "other", "inference", required=False, **{"torch.nn": 1e-3}),
        made_up("LSTM", "one", "training", **{"torch.nn": 3.0}),
        made_up("RNN", "three", "inference", **{"torch.nn": 9.0}),
    ]
    assert report.geometric_means({"rows": rows}) == {
        ("torch.nn", "inference", "LSTM"): (pytest.approx(2.0), "one", 1.0),
        ("onnxruntime", "inference", "LSTM"): (pytest.approx(2.0), "one", 0.5),
        ("torch.nn", "training", "LSTM"): (pytest.approx(3.0), "one", 3.0),
        ("torch.nn", "inference", "RNN"): (pytest.approx(9.0), "three", 9.0),
    }
    assert report.summary({"rows": rows}) == (
        ["geometric mean of the speed-ups", "LSTM", "RNN"],
        [
            ["over torch.nn, inference", "2.00× (worst one 1.00×)", "9.00× (worst three 9.00×)"],
            ["over torch.nn, training", "3.00× (worst one 3.00×)", "–"],
            ["over onnxruntime, inference", "2.00× (worst one 0.50×)", "–"],
        ],
    )


def test_means_stand_above_the_rows_where_some_are_required(result):
    assert "geometric mean" not in report.markdown(result) + report.terminal(result)
    for row in result["rows"]:
        row["required"] = True
    text = report.terminal(result)
    assert text.index("geometric mean") < text.index("max diff")
    text = report.markdown(result)
    assert "Over 1 shapes" in text
    assert text.index("geometric mean") < text.index("| LSTM inference | LSTM training |")
    assert f"| {TINY.shape} | {result['rows'][0]['speedup']['median']:.2f}× |" in text


def test_the_lost_rows_are_named_the_slowest_first():
    rows = [
        made_up("LSTM", "one", "inference", **{"torch.nn": 0.9, "onnxruntime": 1.5}),
        made_up("LSTM", "two", "training", **{"torch.nn": 0.8}),
        made_up("LSTM", "three", "inference", **{"torch.nn": 1.0}),
    ]
    assert report.lost({"rows": rows}) == (
        "Rows lost to torch.nn, of 3: two training 0.80×, one inference 0.90× (not certain, a median within "
        "the other's quartiles: three inference 1.00×); to onnxruntime, of 1: none."
    )


def test_a_row_is_lost_only_where_the_quartiles_lie_apart():
    noisy = {"median_ms": 1.0, "q1_ms": 0.8, "q3_ms": 1.2}
    rows = [made_up("LSTM", "one", "inference", **{"torch.nn": ratio}) for ratio in (0.7, 0.9, 1.1, 1.3)]
    for row in rows:
        row["peers"]["rnnfast"] = noisy
    assert "of 4: one inference 0.70× (" in report.lost({"rows": rows})
    assert "quartiles: one inference 0.90×, one inference 1.10×)" in report.lost({"rows": rows})


@pytest.mark.parametrize("fraction, fine", [(1.01, True), (1.03, False), (float("nan"), False)])
def test_faster_than_the_limit_is_no_result(result, fraction, fine):
    for row in result["rows"]:
        for peer in row["peers"].values():
            peer["fraction"] = 0.5
    result["rows"][1]["peers"]["rnnfast"]["fraction"] = fraction
    assert (report.faults(result) == []) is fine
    if not fine:
        with pytest.raises(ValueError, match="tiny training: rnnfast at"):
            report.markdown(result)


def test_readme_table_comes_from_the_json_alone_and_once(result, tmp_path):
    data, page = tmp_path / "bench.json", tmp_path / "README.md"
    data.write_text(json.dumps(result))
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    report.main([str(data), "--readme", str(page)])
    once, rows = page.read_text(), (tmp_path / "docs" / "benchmarks.md").read_text()
    assert once.startswith("before\n") and once.endswith("after\n") and "old" not in once
    assert "a test" in once and rows.count("| tiny |") == 2
    report.main([str(data), "--readme", str(page)])
    assert page.read_text() == once


def test_another_machine_stands_below_the_first(result, tmp_path):
    other = copy.deepcopy(result)
    other["meta"]["cpu"], other["rows"][0]["name"] = "Another", "theirs"
    files = [tmp_path / "bench.json", tmp_path / "other.json"]
    for path, one in zip(files, (result, other), strict=True):
        path.write_text(json.dumps(one))
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    report.main([*map(str, files), "--readme", str(readme)])
    text, rows = readme.read_text(), (tmp_path / "docs" / "benchmarks.md").read_text()
    assert text.index(result["meta"]["cpu"]) < text.index("The same on another machine: Another")
    assert rows.index("| tiny |") < rows.index("## Another") < rows.index("| theirs |")


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, (BEGIN + END) * 2])
def test_readme_without_its_markers_is_left_alone(result, text, tmp_path):
    data, page = tmp_path / "bench.json", tmp_path / "README.md"
    data.write_text(json.dumps(result))
    page.write_text(text)
    with pytest.raises(SystemExit, match="once each"):
        report.main([str(data), "--readme", str(page)])
    assert page.read_text() == text


def test_losing_rows_stay_in(result, tmp_path):
    slow = copy.deepcopy(result)
    slow["rows"][0]["speedup"] = {"median": 0.5, "q1": 0.4, "q3": 0.6}
    slow["rows"][1]["speedup"] = {"median": 2.0, "q1": 1.9, "q3": 2.1}
    assert "0.50× (0.40–0.60)" in report.page(slow)
    bars = report.chart(slow, tmp_path / "chart.png").axes[0].patches
    assert [bool(bar.get_hatch()) for bar in bars] == [True, False]
