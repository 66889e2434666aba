"""The benchmarks beside that of speed: memory, every size, and other conditions of a machine."""

import json

import pytest

from benchmarks import company, conditions, enabled, episodes, memory, record, report, smooth
from benchmarks.describe import describe

META = dict.fromkeys(
    "machine cpu isa python torch onnxruntime rnnfast commit threads date command".split(), "x"
)


def page(tmp_path, *results):
    """The docs/results.md that the made-up `results` give, and docs/conditions.md beside it."""
    readme, text, files = tmp_path / "README.md", tmp_path / "docs" / "results.md", []
    text.parent.mkdir()
    readme.touch()
    text.write_text("".join("{}\n{}\n".format(*report.markers(result["kind"])) for result in results))
    for result in results:
        record.save(result, tmp_path, result["kind"])
        files.append(str(tmp_path / f"{result['kind']}.json"))
    report.main([*files, "--readme", str(readme)])
    return text.read_text()


def test_the_memory_table_counts_bytes_and_numbers_for_each_output(tmp_path):
    row = {"shape": "LSTM T=9", "outputs": 10, "peers": {}}
    row["peers"]["torch.nn"] = {"inference": 80.0, "forward": 2400.0, "training": 4000.0, "left": 0.0}
    row["peers"]["rnnfast"] = {"inference": 40.0, "forward": 240.0, "training": 4400.0, "left": 40.0}
    text = page(tmp_path, {"kind": "memory", "meta": META, "rows": [row]})
    assert "| LSTM T=9 | inference, peak | 80 (2.0) | 40 (1.0) |" in text
    assert "| 2,400 (60.0) | 240 (6.0) |" in text and "| 4,000 (100.0) | 4,400 (110.0) |" in text


def test_memory_is_measured(tmp_path, capsys):
    assert memory.main(["--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "memory.json").read_text())["rows"]
    numbers = {what: value / 4 / row["outputs"] for what, value in row["peers"]["rnnfast"].items()}
    assert 1 <= numbers["inference"] < 1.5  # the output, and no more than a chunk beside it
    assert 6 <= numbers["forward"] < 6.5  # the gates, c and the output
    assert numbers["forward"] < numbers["training"]
    assert "both directions" in capsys.readouterr().out


def curve(cell, **values):
    return {"peer": "rnnfast", "cell": cell, "over": "hidden", "fixed": 1, "sizes": [4, 8, 12], **values}


def test_the_worst_jump_is_the_largest_rise_for_a_unit_of_work(tmp_path):
    assert smooth.worst_jump([1, 2, 4], [1.0, 1.0, 1.0]) == (1, 0.5)  # time stays, work grows: no cliff
    assert smooth.worst_jump([1, 2, 3, 4], [1.0, 2.0, 6.0, 4.0]) == (2, 2.0)
    calm = curve("GRU", work=[1, 2, 3], step_us=[1.0, 2.0, 3.0])
    steep = curve("LSTM", work=[1, 2, 3], step_us=[1.0, 2.0, 4.5])
    theirs = {**curve("LSTM", work=[1, 2, 3], step_us=[1.0, 9.0, 9.0]), "peer": "torch.nn"}
    result = {"kind": "smooth", "meta": META, "curves": [calm, steep, theirs]}
    assert smooth.jumps(result) == [(1.5, "LSTM B=1, H=8 to 12"), (1.0, "GRU B=1, H=4 to 8")]
    assert "1.50× (LSTM B=1, H=8 to 12" in page(tmp_path, result)


def test_smooth_visits_every_size():
    chosen = {(c.peer, c.cell, c.over, c.fixed): c.sizes for c in smooth.curves(quick=False)}
    for cell in ("LSTM", "GRU"):
        for fixed in (1, 16):
            assert chosen["rnnfast", cell, "hidden", fixed] == tuple(range(8, 601, 4))
        for fixed in (128, 256):
            assert chosen["rnnfast", cell, "batch", fixed] == tuple(range(1, 131))
    for curve in smooth.curves(quick=False):
        fixed = "batch" if curve.over == "hidden" else "hidden"
        assert {(point.steps, getattr(point, fixed)) for point in curve.points()} in (
            {(steps, curve.fixed)} for steps in (50, 100)
        )


def test_smooth_runs_end_to_end(tmp_path, capsys):
    assert smooth.main(["--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
    curves = json.loads((tmp_path / "smooth.json").read_text())["curves"]
    assert len(curves) == 12 and all(us > 0 for curve in curves for us in curve["step_us"])
    assert (tmp_path / "smooth.png").read_bytes().startswith(b"\x89PNG")
    assert "Largest rise" in capsys.readouterr().out


def test_calls_are_described_by_median_nearest_rank_and_maximum():
    assert describe([k / 1e3 for k in range(200, 0, -1)]) == {
        "median_ms": pytest.approx(100.5),
        "mean_ms": pytest.approx(100.5),
        "p99_ms": pytest.approx(198),
        "max_ms": pytest.approx(200),
        "calls": 200,
    }


def test_conditions_stand_among_the_results_and_on_their_page(tmp_path):
    def row(condition, theirs, ours):
        names = ("median_ms", "mean_ms", "p99_ms", "max_ms", "calls")
        peers = {
            "torch.nn": dict(zip(names, theirs, strict=True)),
            "rnnfast": dict(zip(names, ours, strict=True)),
        }
        return {"condition": condition, "shape": "LSTM", "peers": peers}

    rows = [row("1 thread", (2.0, 2.5, 3.0, 4.0, 9), (1.0, 1.0, 1.5, 2.0, 9))]
    rows += [row("8 threads", (40.0, 45.0, 50.0, 200.0, 9), (2.0, 2.5, 3.0, 7.0, 9))]
    first = {"first_ms": 6.0, "warm_ms": 2.0}
    first = [{"shape": "LSTM", "peers": {"torch.nn": first, "rnnfast": first}}]
    text = page(tmp_path, {"kind": "conditions", "meta": META, "rows": rows, "first": first})
    assert "2.00 to 20.00 times as fast" in text and "took 7 times" in text and "(torch.nn: 100)" in text
    table = (tmp_path / "docs" / "conditions.md").read_text()
    assert "| LSTM | 1 thread | 2 / 2.5 / 3 / 4 | 1 / 1 / 1.5 / 2 | 2.00× | 2.50× | 2 | 2 |" in table
    assert "| LSTM | 8 threads | 40 / 45 / 50 / 200 | 2 / 2.5 / 3 / 7 | 20.00× | 18.00× | 100 | 7 |" in table
    assert "| LSTM | 6 / 2 | 3.0 | 6 / 2 | 3.0 |" in table


def test_two_threads_in_company_are_set_against_one_and_what_is_asked_stands_beside():
    def row(processes, threads, busy, mean, p99):
        steps = {"median_ms": mean - 1, "mean_ms": mean, "p99_ms": p99, "max_ms": 99.0, "calls": 200}
        return {"shape": "GRU", "processes": processes, "threads": threads, "busy": busy, "steps": steps}

    rows = [
        row(1, 1, 0, 10.0, 12.0),
        row(1, 2, 1, 11.0, 30.0),
        row(1, 1, 3, 20.0, 60.0),
        row(1, 2, 3, 25.0, 90.0),
    ]
    rows += [row(1, 2, 0, 6.0, 7.0), row(4, 1, 0, 20.0, 70.0), row(4, 2, 0, 21.0, 80.0)]
    workers = {"workers": 8, "shape": "LSTM", "grown_mb": 49.4, "call_mb": 41.6}
    text = company.section({"company": rows, "torch_beside_one": [{"mean_ms": 575.2}], "workers": workers})
    assert "| GRU | alone | 5 / 6 / 7 | 9 / 10 / 12 | 0.60 |  | 0.70 |  |" in text
    assert (
        "| GRU | beside one busy process | 10 / 11 / 30 | 9 / 10 / 12 | 1.10 | ≤ 1.2 | 3.00 | ≤ 2.5 |" in text
    )
    assert (
        "| GRU | beside three busy processes | 24 / 25 / 90 | 19 / 20 / 60 | 1.25 | ≤ 1.15 | 4.50 |  |"
        in text
    )
    assert "| GRU | 4 processes at once | 20 / 21 / 80 | 19 / 20 / 70 | 1.05 | ≤ 1.15 | 4.00 |  |" in text
    assert "575 ms" in text and "49 MiB each" in text and "takes 42 at most" in text


def test_conditions_run_end_to_end(tmp_path, capsys):
    assert conditions.main(["--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "conditions.json").read_text())
    assert [row["condition"] for row in result["rows"]] == [
        "1 thread",
        "in a parallel region of 1",
        "in a forked DataLoader worker",
        "4 processes at once, threads: 1",
    ]
    for row in result["rows"]:
        for peer in row["peers"].values():
            assert 0 < peer["median_ms"] <= peer["p99_ms"] <= peer["max_ms"]
    assert result["first"][0]["peers"]["rnnfast"]["first_ms"] > 0
    (row,) = result["company"]
    assert row["threads"] == 1 and row["busy"] == 0 and row["steps"]["calls"] >= 2
    assert result["workers"]["grown_mb"] > 0 and result["workers"]["call_mb"] > 0
    assert "max / 1 thread" in capsys.readouterr().out


def test_episodes_run_end_to_end(tmp_path, capsys):
    assert episodes.main(["--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "episodes.json").read_text())
    assert len(result["times"]) == 4
    assert all(t > 0 for times in result["times"].values() for all_of in times.values() for t in all_of)
    assert "torch.nn, split" in capsys.readouterr().out

    times = {"ours": [1.0, 2.0, 4.0], "torch.nn": [3.0, 8.0, 8.0], "ours, packed": [1.1, 2.1, 4.4]}
    text = episodes.markdown({"meta": META, "times": {"LSTM lengths, inference": times}})
    assert "| LSTM lengths, inference | 2.00 | 3.00× |  |  | 1.10× |  |" in text


def test_enabled_runs_end_to_end_and_its_page_says_what_it_found(tmp_path, capsys):
    assert enabled.main(["--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "enabled.json").read_text())
    assert set(result["cell"]) == set(enabled.CONTENDERS)
    assert all(t > 0 for times in result["cell"].values() for t in times)
    assert "over torch.nn, converted" in capsys.readouterr().out

    times = {"torch": [8.0, 10.0, 12.0], "enabled": [4.0, 5.0, 6.0], "converted": [2.0, 2.0, 2.0]}
    cell = {"torch": [5.0, 5.0], "torch, no inputs": [6.0, 6.0], "passed on": [6.5, 6.25]}
    cell |= {"taken": [3.0, 3.0], "op": [4.0, 4.0]}
    result = {"kind": "enabled", "meta": META, "cell": cell, "streams": {"GRU": times}}
    text = page(tmp_path, result)
    assert "| GRU T=1 B=1 H=64 | 10.0 | 5.0 | 2.0 | 2.00× | 5.00× |" in text
    assert "passed on takes 0.38 µs more; one that is taken 3.0 µs, -1.00 µs beside" in text
