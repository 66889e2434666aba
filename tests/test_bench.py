"""The benchmarks: peers agree, limits follow the formulas, a wrong or a too fast row fails the run."""

import copy
import csv
import json
from types import SimpleNamespace

import pytest
import torch

import rnnfast
from benchmarks import conditions, gpu, memory, record, report, run, smooth
from benchmarks.cases import BOTH, CASES, Case
from benchmarks.peers import Problem, all_peers, baseline, first_outcome, reference
from benchmarks.roofline import Team, bound, limit

BEGIN, END = report.markers("bench")
TINY = Case("tiny", "a test", "LSTM", batch=2, hidden=5, steps=3, inputs=4)


def team(threads=2, flops=1e9, bandwidth=1e8, barrier=1e-6, sigmoids=1e7):
    """A machine of round numbers."""
    return SimpleNamespace(
        threads=threads,
        flops=lambda dtype: flops,
        bandwidth=lambda size: bandwidth,
        barrier=lambda: barrier,
        sigmoids=lambda: sigmoids,
        measure_again=lambda: None,
        describe=lambda dtypes: {
            "gflops": dict.fromkeys(dtypes, flops / 1e9),
            "read_gb_per_s": {"memory": bandwidth / 1e9},
            "barrier_us": barrier * 1e6,
            "sigmoid_ns_per_16": 16e9 / sigmoids,
        },
    )


@pytest.fixture
def round_machine(monkeypatch):
    """No probe runs: the machine is so fast that nothing beats its limit."""
    monkeypatch.setattr(run, "Team", lambda threads: team(threads, 1e18, 1e18, 0.0, 1e18))


@pytest.fixture
def result(round_machine):
    return run.run([TINY], threads=1, seconds=0.0, least=2, command="a test")


def test_one_real_row_runs_end_to_end(tmp_path, capsys):
    arguments = ["--quick", "--rows", "lstm-stream-h32", "--threads", "1", "--out", str(tmp_path)]
    assert run.main(arguments) == 0
    written = json.loads((tmp_path / "bench.json").read_text())
    meta = "machine cpu isa python torch onnxruntime rnnfast commit threads date command".split()
    assert [key for key in meta if not written["meta"].get(key)] == []
    assert written["meta"]["command"].endswith(" ".join(arguments))
    rates = written["roofline"]["1"]
    assert rates["gflops"]["float32"] >= rates["product_gflops"]["float32"] > 0
    assert rates["read_gb_per_s"]["memory"] > 0
    (row,) = written["rows"]
    assert list(row["peers"]) == ["torch.nn", "Python loop", "onnxruntime", "rnnfast"]
    for peer in row["peers"].values():
        assert 0 < peer["q1_ms"] <= peer["median_ms"] <= peer["q3_ms"]
        assert peer["difference"] < 1e-5
        assert peer["fraction"] == pytest.approx(row["limit_ms"] / peer["median_ms"])
    assert set(row["spent"]) == {"outside", "pack", "product", "cell", "wait", "other"}
    assert sum(row["spent"].values()) == pytest.approx(1) and min(row["spent"].values()) >= 0
    assert row["bound"] == "reading"  # one row multiplies each weight once
    assert 0 < row["product_limit_ms"] < row["limit_ms"]
    assert row["plan"] and row["reason"] and row["rounds"] >= 3
    with (tmp_path / "bench.csv").open() as file:
        assert [line["peer"] for line in csv.DictReader(file)] == list(row["peers"])
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "lstm-stream-h32" in capsys.readouterr().out


@pytest.mark.parametrize(
    "case",
    [
        TINY,
        Case("two of all", "", "LSTM", 2, 5, 3, layers=2, directions=2),
        Case("two of all", "", "GRU", 2, 5, 3, layers=2, directions=2),
        Case("elman", "", "RNN", 1, 5, 3),
        Case("packed", "", "GRU", 3, 5, 4, lengths=(4, 4, 2), modes=BOTH[1:]),
        Case("one step", "", "GRU", 1, 5, 1),
        Case("cell", "", "LSTMCell", 2, 5, 1),
        Case("deep", "", "DeepTransitionRNN", 2, 5, 3, inputs=4),
        Case("bfloat16", "", "LSTM", 2, 5, 3, dtype="bfloat16"),
        Case("new weights", "", "GRU", 2, 5, 3, fresh_weights=True),
    ],
    ids=lambda case: f"{case.cell}-{case.name}".replace(" ", "-"),
)
def test_all_peers_compute_the_same(case):
    for mode in case.modes:
        training = mode == "training"
        problem = Problem.make(case)
        with torch.inference_mode(not training):
            exact = reference(problem, training)  # before the peers change a weight
            peers = all_peers(problem, training, threads=1)
            results = {name: peer.compare(first_outcome(peer, case)[0]) for name, peer in peers.items()}
            differences, wrong = run.compare(results, exact, baseline(case))
        assert wrong == []
        assert len(results["rnnfast"]) == (2 + len(list(problem.layer.parameters())) if training else 1)
        assert list(peers)[0] == baseline(case) and list(peers)[-1] == "rnnfast"


def test_a_wrong_output_fails_the_run(monkeypatch, round_machine, tmp_path, capsys):
    class Wrong(rnnfast.LSTM):
        def forward(self, x, hx=None):
            y, state = super().forward(x, hx)
            return y + 1e-4, state

    monkeypatch.setattr(rnnfast, "LSTM", Wrong)
    monkeypatch.setattr(run, "CASES", [TINY])
    assert run.main(["--quick", "--rows", "tiny", "--threads", "1", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED tiny inference: rnnfast differs by" in printed
    with pytest.raises(ValueError, match="rnnfast differs"):
        report.markdown(json.loads((tmp_path / "bench.json").read_text()))


def test_fresh_weights_change_every_result_and_onnxruntime_is_left_out():
    problem = Problem.make(Case("", "", "LSTM", 2, 5, 3, fresh_weights=True))
    with torch.inference_mode():
        peers = all_peers(problem, False, threads=1)
        assert list(peers) == ["torch.nn", "Python loop", "rnnfast"]
        for peer in peers.values():
            results = [peer.call()[0] for _ in range(4)]
            assert all(not torch.equal(a, b) for a, b in zip(results, results[1:], strict=False))
            torch.testing.assert_close(results[0], results[3])  # back where the first began: nothing drifts


@pytest.mark.parametrize("before", [0.0, 1e-3], ids=["first call", "construction"])
def test_weights_kept_from_an_earlier_call_fail_the_run(before, monkeypatch, round_machine):
    class Stale(rnnfast.LSTM):
        kept = None

        def forward(self, x, hx=None):
            if self.kept is None:
                self.kept = [w.detach().clone() for w in self.all_weights[0]]
                self.kept[1] -= before
            return rnnfast.functional.lstm(x, hx, [self.kept])

    monkeypatch.setattr(rnnfast, "LSTM", Stale)
    case = Case("tiny", "", "LSTM", 2, 5, 3, modes=("inference",), fresh_weights=True)
    (row,) = run.run([case], threads=1, seconds=0.0, least=2, command="a test")["rows"]
    assert "rnnfast differs" in row["failed"]


def test_a_brief_peer_is_timed_in_three_rounds_and_the_others_go_on():
    calls = {name: lambda: None for name in ("a", "b", "c")}
    times = run.interleave(calls, seconds=60, least=5, most=5, min_time=1e-6, slow={"a"}, brief={"b"})
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 3, "c": 5}


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


def test_a_wrong_gradient_or_nan_is_seen():
    exact = (torch.ones(3), torch.tensor([10.0, 20.0]))
    good = (torch.ones(3), torch.tensor([10.0, 20.0]))
    for bad in (torch.tensor([10.0, 20.001]), torch.tensor([10.0, float("nan")])):
        _, wrong = run.compare({"torch.nn": good, "rnnfast": (good[0], bad)}, exact, "torch.nn")
        assert len(wrong) == 1 and wrong[0].startswith("rnnfast")
    assert run.compare({"torch.nn": good, "rnnfast": good}, exact, "torch.nn")[1] == []


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


@pytest.mark.parametrize(
    "case, inference, training",
    [
        # 4 gates, I = 40, H = 100, B = 1, T = 10. t_proj: the product 2*4*100*40*10 / 1e9 = 320 us, reading
        # 64,000 bytes 640. A step: the product takes 2*4*100*100 / 1e9 = 80 us, reading 160,000 bytes 1600,
        # the barrier 1, 500 sigmoids 50: 1651.
        # Training: t_rec again, dx and dW_ih as t_proj each, dW_hh 2*4*100*100*10 / 1e9 = 800 us.
        (Case("", "", "LSTM", 1, 100, 10, inputs=40), 640 + 16510, 640 + 2 * 16510 + 2 * 320 + 800),
        # 3 gates, H = 100, B = 64, T = 2: t_proj = 3840 * T us, a step's product as much, reading only 1200;
        # rows enough for both threads: no barrier; 64 * 300 sigmoids 1920.
        (Case("", "", "GRU", 64, 100, 2), 7680 + 2 * 5760, 3 * 7680 + 4 * 5760 + 7680),
        # Both directions double all; each layer after the first reads both. One row each: no barrier.
        # Layer 1: the products 2*2*10*10 / 1e9 = 0.4 us, reading 8: t_proj 8, step 8 + 2; layer 2: 0.8 us and
        # 16: t_proj 16, step 10.
        (Case("", "", "RNN", 1, 10, 1, layers=2, directions=2), 44, 44 + 20 + 2 * 1.2 + 2 * 0.4),
        # Packed: 3 rows alive, then 1: products 2*300*3 / 1e9 and 0.6 us, reading 12, sigmoids 9 and 3.
        # The last step has one row: a barrier, 1 us. t_proj: the product 2.4 us, reading 12.
        (Case("", "", "GRU", 3, 10, 2, lengths=(2, 1, 1)), 12 + 21 + 16, 12 + 2.4 * 3 + 2 * 37),
        # Three products a step, 3 H H: 1200 bytes are 12 us, three barriers; projection H I: 0.2 us, reading
        # 4.
        (Case("", "", "DeepTransitionRNN", 1, 10, 1), 19, 19 + 15 + 2 * 0.2 + 0.6),
        # Half the bytes.
        (Case("", "", "RNN", 1, 10, 1, dtype="bfloat16"), 2 + 2 + 2, 2 + 4 + 4 + 0.4 + 0.2),
    ],
    ids=["lstm", "gru-rows", "directions-layers", "packed", "deep", "bfloat16"],
)
def test_limits_are_those_computed_by_hand(case, inference, training):
    assert limit(case, False, [team()]) * 1e6 == pytest.approx(inference)
    assert limit(case, True, [team()]) * 1e6 == pytest.approx(training)


def test_the_products_limit_is_the_limit_without_barrier_and_cell():
    one, many = Case("", "", "LSTM", 1, 100, 10, inputs=40), Case("", "", "GRU", 64, 100, 2)
    assert limit(one, False, [team()], bare=True) * 1e6 == pytest.approx(640 + 16000)
    assert limit(many, False, [team()], bare=True) * 1e6 == pytest.approx(7680 + 2 * 3840)
    assert (bound(one, [team()]), bound(many, [team()])) == ("reading", "multiplying")


def test_a_single_step_reads_both_weights_from_where_they_lie_together():
    asked = []
    machine = team()
    machine.bandwidth = lambda size: asked.append(size) or 1e8
    for steps, held in ((1, 4 * 4 * 100 * (100 + 40)), (10, 4 * 4 * 100 * 100)):
        asked.clear()
        limit(Case("", "", "LSTM", 1, 100, steps, inputs=40), False, [machine])
        assert set(asked) == {held}


def test_the_limit_takes_the_better_of_one_thread_and_all():
    case = Case("", "", "RNN", 1, 10, 1)
    alone = team(
        threads=1, flops=5e8, bandwidth=5e7, sigmoids=5e6
    )  # a step: 8 + 2 us, against 4 + 1 and a barrier
    assert limit(case, False, [alone, team(barrier=1e-6)]) * 1e6 == pytest.approx(4 + 6)
    assert limit(case, False, [alone, team(barrier=1e-3)]) * 1e6 == pytest.approx(4 + 10)


def test_rates_only_rise():
    machine, now = Team(1), {"rate": 3.0}
    assert machine._rate("key", lambda: now["rate"]) == 3.0
    for now["rate"], best in ((2.0, 3.0), (4.0, 4.0)):
        machine.measure_again()
        assert machine._rate("key", lambda: 0.0) == best


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_measured_peak_is_at_least_torchs_own_product(dtype):
    machine = Team(1)
    peak = machine.flops(dtype)
    assert set(machine._rates) == {("mm", dtype, 1024), ("mm", dtype, 2048), ("fma", dtype)}
    assert peak == max(rate for _, rate in machine._rates.values())


def test_rows_of_the_performance_page_are_there():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert all(case.reason for case in CASES)
    required = [case for case in CASES if case.required]
    assert {(c.steps, c.inputs, c.layers, c.directions, c.dtype, c.modes) for c in required} == {
        (100, None, 1, 1, "float32", BOTH)
    }
    sizes = [(1, 64), (1, 128), (1, 256), (1, 512), (1, 1024)]
    sizes += [(16, 256), (64, 128), (64, 256), (64, 512), (128, 1024)]
    cells = ("LSTM", "GRU", "RNN")
    assert [(c.cell, c.batch, c.hidden) for c in required] == [(cell, *s) for cell in cells for s in sizes]
    packed = next(case for case in CASES if case.name == "lstm-packed")
    assert (packed.steps, packed.batch, packed.hidden) == (400, 64, 128)
    assert (min(packed.lengths), max(packed.lengths)) == (100, 400)
    assert sum(packed.lengths) / (400 * 64) == pytest.approx(0.65, abs=0.005)


META = dict.fromkeys(
    "machine cpu isa python torch onnxruntime rnnfast commit threads date command".split(), "x"
)


def page(tmp_path, *results):
    """The README and docs/conditions.md that the made-up `results` give."""
    readme, files = tmp_path / "README.md", []
    readme.write_text("".join("{}\n{}\n".format(*report.markers(result["kind"])) for result in results))
    for result in results:
        record.save(result, tmp_path, result["kind"])
        files.append(str(tmp_path / f"{result['kind']}.json"))
    report.main([*files, "--readme", str(readme)])
    return readme.read_text()


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
    assert conditions.describe([k / 1e3 for k in range(200, 0, -1)]) == {
        "median_ms": pytest.approx(100.5),
        "mean_ms": pytest.approx(100.5),
        "p99_ms": pytest.approx(198),
        "max_ms": pytest.approx(200),
        "calls": 200,
    }


def test_conditions_stand_in_the_readme_and_on_their_page(tmp_path):
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
    assert "max / 1 thread" in capsys.readouterr().out


def test_the_rows_of_the_gpu_bench_are_named_once_and_few():
    rows = gpu.rows()
    assert len(rows) <= 80
    assert len({row.name for row in rows}) == len(rows)
    assert {row.standard("forward") for row in rows} == {True, False}
    assert rows[:6] == gpu.FIRST


@pytest.mark.parametrize(
    "row, forward, training",
    [
        (gpu.Row("LSTM", 16, 128, "bf16"), False, False),
        (gpu.Row("LSTM", 16, 192, "bf16"), False, True),
        (gpu.Row("LSTM", 16, 256, "bf16"), True, True),
        (gpu.Row("LSTM", 16, 512, "fp16"), False, False),
        (gpu.Row("LSTM", 1, 512, "fp16"), True, True),
        (gpu.Row("GRU", 16, 512, "fp16"), True, True),
        (gpu.Row("RNN", 16, 256, "bf16"), False, False),
        (gpu.Row("LSTM", 16, 64, "bf16", packed=True), True, True),
    ],
)
def test_which_algorithm_of_cudnn_a_row_meets(row, forward, training):
    assert (row.standard("forward"), row.standard("training")) == (forward, training)


@pytest.mark.parametrize("packed", [False, True])
def test_the_gpu_bench_measures_and_compares(packed):
    row = gpu.Row("LSTM", 3, 5, "fp32", steps=4, layers=2, directions=2, packed=packed)
    result = gpu.run([row], "cpu", 2, 1e-4, "here")
    assert [r["mode"] for r in result["rows"]] == ["forward", "training"]
    for r in result["rows"]:
        assert r["failed"] == ""
        assert 0 < r["difference"] < 1e-4
        assert 0 < r["low"] <= r["speedup"] <= r["high"]
    assert "all rows" in gpu.means(result)[0]
    assert row.name in gpu.table(result)[1][0]


def test_a_wrong_gpu_result_is_said(monkeypatch):
    monkeypatch.setattr(gpu, "DIFFERENCE", {"fp32": 0.0})
    result = gpu.run([SMALL], "cpu", 2, 1e-4, "here")
    assert all("outputs differ by" in r["failed"] for r in result["rows"])
    assert gpu.means(result) == []
    assert gpu.difference((torch.tensor([float("nan")]),), (torch.ones(1),)) == float("inf")


SMALL, OTHER = gpu.Row("GRU", 2, 3, "fp32", steps=2), gpu.Row("LSTM", 2, 3, "fp32", steps=2)


@pytest.fixture
def raises(monkeypatch):
    """raises(error): so does one mode of SMALL."""

    def plant(error, mode="training"):
        real = gpu.calls_of

        def planted(row, device):
            def call():
                raise error

            calls = real(row, device)
            return calls | {mode: {**calls[mode], "rnnfast": call}} if row == SMALL else calls

        monkeypatch.setattr(gpu, "calls_of", planted)

    return plant


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nmore"), ValueError()])
def test_a_gpu_row_that_raises_fails_and_the_others_go_on(raises, error, capsys):
    raises(error)
    result = gpu.run([SMALL, OTHER], "cpu", 1, 1e-4, "here")
    said = f"{type(error).__name__}: {'CUDA out of memory.' if error.args else 'nothing said'}"
    assert [r["failed"] for r in result["rows"]] == ["", said, "", ""]
    assert [r["name"] for r in result["rows"]] == [SMALL.name] * 2 + [OTHER.name] * 2
    assert "lost" in gpu.means(result)[0]  # of the three that are right
    assert gpu.report(result) == 1
    assert said in capsys.readouterr().out


def test_what_the_gpu_bench_has_measured_is_saved_after_every_row(raises, tmp_path):
    saved = []

    def save(result):
        record.save(result, tmp_path, "gpu")
        saved.append(json.loads((tmp_path / "gpu.json").read_text()))

    raises(KeyboardInterrupt(), "forward")
    with pytest.raises(KeyboardInterrupt):
        gpu.run([OTHER, SMALL], "cpu", 1, 1e-4, "here", save=save)
    assert [len(result["rows"]) for result in saved] == [1, 2]
    assert saved[-1]["left_out"] == [SMALL.name]
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_who_is_killed_while_saving_leaves_what_was_saved_before(tmp_path):
    record.save({"rows": [1]}, tmp_path, "gpu")
    with pytest.raises(TypeError):
        record.save({"rows": [1, object()]}, tmp_path, "gpu")
    assert json.loads((tmp_path / "gpu.json").read_text()) == {"rows": [1]}


def test_the_gpu_bench_ends_with_what_it_has_when_the_context_is_lost(raises, monkeypatch, capsys):
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")
    raises(lost, "forward")

    fine, saved = iter([True, True, False]), []

    def synchronize(device):
        if not next(fine):
            raise lost

    monkeypatch.setattr(gpu, "synchronize", synchronize)
    found = gpu.run([OTHER, SMALL, gpu.Row("RNN", 2, 3, "fp32")], "cpu", 1, 1e-4, "here", save=saved.append)
    said = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert [r["failed"] for r in found["rows"]] == ["", "", said]
    assert saved[-1]["ended"] == f"because the CUDA context is lost ({said})"
    assert gpu.report(found) == 1
    assert "not measured: rnn-b2-h3-fp32" in capsys.readouterr().err


def test_a_gpu_row_in_which_a_block_waited_in_vain_has_failed(monkeypatch):
    failures = iter([False, True, False, False])
    monkeypatch.setattr(gpu.info, "cuda_failure", lambda: next(failures))
    result = gpu.run([SMALL, OTHER], "cpu", 1, 1e-4, "here")
    assert [r["failed"] for r in result["rows"]] == ["", "a block waited in vain", "", ""]


def test_each_gpu_row_says_how_its_kernel_lay_on_the_device(monkeypatch):
    plans = iter([{"team": "cluster", "blocks": 8}, {"team": "grid", "blocks": 66}])
    monkeypatch.setattr(gpu.info, "last_run", lambda: {"cuda": next(plans)})
    result = gpu.run([SMALL], "cpu", 1, 1e-4, "here")
    assert [r["plan"]["team"] for r in result["rows"]] == ["cluster", "grid"]


def test_the_gpu_bench_begins_no_row_after_its_limit(capsys):
    result = gpu.run([SMALL, OTHER], "cpu", 1, 1e-4, "here", limit=-1)
    assert result["rows"] == [] and result["left_out"] == [SMALL.name, OTHER.name]
    assert gpu.report(result) == 1
    assert f"ended at its limit of -1 s, not measured: {SMALL.name}, {OTHER.name}" in capsys.readouterr().err


def test_the_gpu_benchs_peer_flattens_its_bfloat16_weights(monkeypatch):
    taken = torch.backends.cudnn.CUDNN_TENSOR_DTYPES - {torch.bfloat16}
    monkeypatch.setattr(torch.backends.cudnn.m, "CUDNN_TENSOR_DTYPES", taken)
    gpu.calls_of(gpu.Row("LSTM", 2, 3, "bf16", steps=2), "cpu")
    assert torch.bfloat16 in torch.backends.cudnn.CUDNN_TENSOR_DTYPES


def test_the_gpu_bench_says_when_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 77
    assert capsys.readouterr().err == "no device: torch sees no GPU here\n"


def test_a_result_needs_no_git_and_the_driver_no_nvidia_smi(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("RNNFAST_COMMIT", raising=False)
    assert record.meta(1, "here")["commit"] == "none"
    monkeypatch.setenv("RNNFAST_COMMIT", "1234567")
    assert record.meta(1, "here")["commit"] == "1234567"
    assert gpu.driver() == "unknown"
