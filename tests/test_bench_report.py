"""What is told of a benchmark's result: means, lost rows, tables of README and docs, what is no result."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from bench_helpers import TINY

from benchmarks import headline, report, run

pytest_plugins = ["bench_helpers"]

ROOT = Path(__file__).parent.parent
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


def test_rows_that_are_asked_for_less_have_a_table_of_their_own():
    def row(precision, mode, batch=16, **ratios):
        made = made_up("LSTM", "one", mode, required=False, **{**ratios, "rnnfast ieee": ratios["ieee"]})
        return {**made, "precision": precision, "batch": batch}

    rows = [
        row("bf16", "inference", ieee=2.0, **{"torch.nn": 3.0, "openvino-bf16": 1.5}),
        row("bf16", "inference", ieee=8.0, **{"torch.nn": 12.0, "openvino-bf16": 6.0}),
        row("bf16", "inference", batch=1, ieee=99.0, **{"torch.nn": 99.0}),
        row("tf32", "training", ieee=1.5, **{"torch.nn": 2.5}),
        made_up("LSTM", "two", "inference", **{"torch.nn": 1e-3}),
    ]
    columns, lines = report.asked_for_less({"rows": rows})
    assert len(columns) == 5
    assert lines == [
        ["LSTM, bf16, inference", "2", "4.00×", "6.00×", "3.00×"],
        ["LSTM, tf32, training", "1", "1.50×", "2.50×", "–"],
    ]
    assert report.asked_for_less({"rows": rows[4:]}) is None
    assert "to openvino-bf16, of 2: none" in report.lost({"rows": rows[:2]})


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


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """(README, docs/results.md) with nothing between their markers; the README's rows are those of TINY."""
    monkeypatch.setattr(headline, "ROWS", {("tiny", "inference"): "one", ("tiny", "training"): "two"})
    readme, results = tmp_path / "README.md", tmp_path / "docs" / "results.md"
    results.parent.mkdir()
    readme.write_text("before\n{}\nold\n{}\nafter\n".format(*report.markers("headline")))
    results.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return readme, results


def test_the_tables_come_from_the_json_alone_and_once(result, pages, tmp_path):
    data, readme = tmp_path / "bench.json", pages[0]
    data.write_text(json.dumps(result))
    report.main([str(data), "--readme", str(readme)])
    once = [page.read_text() for page in pages]
    for text in once:
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| one | inference |" in once[0] and "| two | training |" in once[0] and "a test" in once[1]
    assert (tmp_path / "docs" / "benchmarks.md").read_text().count("| tiny |") == 2
    assert (tmp_path / headline.PICTURE).read_bytes().startswith(b"\x89PNG")
    report.main([str(data), "--readme", str(readme)])
    assert [page.read_text() for page in pages] == once


def test_another_machine_stands_below_the_first(result, pages, tmp_path):
    other = copy.deepcopy(result)
    other["meta"]["cpu"], other["rows"][0]["name"] = "Another", "theirs"
    files = [tmp_path / "bench.json", tmp_path / "other.json"]
    for path, one in zip(files, (result, other), strict=True):
        path.write_text(json.dumps(one))
    report.main([*map(str, files), "--readme", str(pages[0])])
    text, rows = pages[1].read_text(), (tmp_path / "docs" / "benchmarks.md").read_text()
    assert text.index(result["meta"]["cpu"]) < text.index("The same on another machine: Another")
    assert rows.index("| tiny |") < rows.index("## Another") < rows.index("| theirs |")
    assert "Another" not in pages[0].read_text()


@pytest.mark.parametrize("page", [0, 1])
@pytest.mark.parametrize("text", ["", "{0}", "{1}", "{1}{0}", "{0}{1}{0}{1}"])
def test_pages_without_their_markers_are_left_alone(result, pages, page, text, tmp_path):
    data = tmp_path / "bench.json"
    data.write_text(json.dumps(result))
    pages[page].write_text(text.format(*report.markers(("headline", "bench")[page])))
    before = [page.read_text() for page in pages]
    with pytest.raises(SystemExit, match="once each"):
        report.main([str(data), "--readme", str(pages[0])])
    assert [page.read_text() for page in pages] == before


def test_a_bench_without_all_the_rows_of_the_readme_is_none_for_it(result, pages, tmp_path, monkeypatch):
    monkeypatch.setitem(headline.ROWS, ("huge", "training"), "three")
    data = tmp_path / "bench.json"
    data.write_text(json.dumps(result))
    with pytest.raises(SystemExit, match="huge training missing"):
        report.main([str(data), "--readme", str(pages[0])])


def test_the_readme_has_the_quickest_way_of_torch_nn(monkeypatch, result):
    monkeypatch.setattr(headline, "ROWS", {("one", "inference"): "a row"})
    row = made_up(
        "LSTM", "one", "inference", **{"torch.nn": 30.0, "Python loop": 20.0, "torch.nn padded": 10.0}
    )
    row["peers"]["onnxruntime"] = {"median_ms": 1.0}  # is not torch.nn
    text = headline.markdown({"rows": [row], "meta": result["meta"]})
    assert "| a row | inference | 10 (padded) | 1 | 10.00× |" in text
    row["peers"]["torch.nn"] |= {"median_ms": 9.0, "ratio": 9.0}
    text = headline.markdown({"rows": [row], "meta": result["meta"]})
    assert "| a row | inference | 9 | 1 | 9.00× |" in text


def test_committed_pages_are_what_the_committed_results_give(tmp_path):
    pages = [
        Path(name) for name in ("README.md", "docs/results.md", "docs/benchmarks.md", "docs/conditions.md")
    ]
    (tmp_path / "docs").mkdir()
    for page in pages:
        shutil.copy(ROOT / page, tmp_path / page)
    folder = ROOT / "benchmarks" / "results"
    files = [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/*.json"))]
    report.main([*map(str, files), "--readme", str(tmp_path / "README.md")])
    for page in pages:
        assert (tmp_path / page).read_text() == (ROOT / page).read_text(), page


def test_the_readme_is_short_and_has_ten_rows_and_one_picture():
    text = (ROOT / "README.md").read_text()
    begin, end = report.markers("headline")
    table = [line for line in text.split(begin)[1].split(end)[0].splitlines() if line.startswith("|")]
    assert len(table) == 2 + 10  # its head and the line below
    assert {line.split("|")[2].strip() for line in table[2:]} == {"inference", "training"}
    for word in ("stream", "packed", "64 sequences", "bfloat16"):
        assert any(word in line for line in table), word
    assert text.count("![") == 1
    assert len(text.split()) <= 1100
    assert len(text.splitlines()) <= 130
    assert [line for line in text.splitlines() if len(line) > 120] == []


def test_losing_rows_stay_in(result, tmp_path):
    slow = copy.deepcopy(result)
    slow["rows"][0]["speedup"] = {"median": 0.5, "q1": 0.4, "q3": 0.6}
    slow["rows"][1]["speedup"] = {"median": 2.0, "q1": 1.9, "q3": 2.1}
    assert "0.50× (0.40–0.60)" in report.page(slow)
    bars = report.chart(slow, tmp_path / "chart.png").axes[0].patches
    assert [bool(bar.get_hatch()) for bar in bars] == [True, False]
