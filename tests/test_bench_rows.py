"""The benchmark's rows: peers agree, a wrong result fails the run, and those that were promised are there."""

import csv
import json
from contextlib import contextmanager

import pytest
import torch
from bench_helpers import TINY, team

import rnnfast
from benchmarks import report, run
from benchmarks.cases import CASES
from rnnfast.bench import rounds
from rnnfast.bench.case import BOTH, Case, asking
from rnnfast.bench.peers import Problem, all_peers, baseline, first_calls, first_outcome, reference
from rnnfast.bench.roofline import limit
from rnnfast.bench.sessions import SESSIONS, needs

pytest_plugins = ["bench_helpers"]


def test_one_real_row_runs_end_to_end(tmp_path, capsys):
    arguments = ["--quick", "--rows", "lstm-stream-h32", "--threads", "1", "--out", str(tmp_path)]
    assert run.main(arguments) == 0
    written = json.loads((tmp_path / "bench.json").read_text())
    meta = "machine cpu isa float32 python torch onnxruntime rnnfast commit threads date command".split()
    assert [key for key in meta if not written["meta"].get(key)] == []
    assert written["meta"]["command"].endswith(" ".join(arguments))
    rates = written["roofline"]["1"]
    assert rates["gflops"]["float32"] >= rates["product_gflops"]["float32"] > 0
    assert rates["read_gb_per_s"]["memory"] > 0
    (row,) = written["rows"]
    others = [name for name in ("onnxruntime", "openvino") if not needs(name)]
    assert list(row["peers"]) == ["torch.nn", "Python loop", *others, "rnnfast"]
    for peer in row["peers"].values():
        assert 0 < peer["q1_ms"] <= peer["median_ms"] <= peer["q3_ms"]
        assert peer["difference"] < 1e-5
        assert peer["fraction"] == pytest.approx(row["limit_ms"] / peer["median_ms"])
    assert set(row["spent"]) == {"outside", "pack", "product", "cell", "wait", "other"}
    assert sum(row["spent"].values()) == pytest.approx(1) and min(row["spent"].values()) >= 0
    assert row["bound"] == "reading"  # one row multiplies each weight once
    assert 0 < row["product_limit_ms"] < row["limit_ms"]
    assert row["plan"]["products"] == 0 and row["reason"] and row["rounds"] >= 3
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
        Case("asked for less", "", "LSTM", 8, 64, 3, precision="tf32"),
        Case("asked for less", "", "GRU", 8, 64, 3, precision="bf16"),
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
            precisions = {name: peer.precision for name, peer in peers.items()}
            differences, wrong = rounds.compare(results, exact, baseline(case), precisions)
        assert wrong == []
        assert len(results["rnnfast"]) == (2 + len(list(problem.layer.parameters())) if training else 1)
        assert list(peers)[0] == baseline(case) and list(peers)[-1] == "rnnfast"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_in_a_row_that_is_asked_for_less_one_peer_of_ours_is_not(precision, monkeypatch):
    seen = []

    class Asked(rnnfast.LSTM):
        def forward(self, x, hx=None):
            seen.append(torch.backends.mkldnn.rnn.fp32_precision)
            return super().forward(x, hx)

    monkeypatch.setattr(rnnfast.nn, "LSTM", Asked)
    before = torch.backends.mkldnn.rnn.fp32_precision
    case = Case("tiny", "", "LSTM", 8, 64, 3, precision=precision, modes=("inference",))
    assert case.shape.endswith(f"asked for {precision}")
    with torch.inference_mode():
        peers = all_peers(Problem.make(case), False, threads=1, others=[])
        for name in "rnnfast ieee", "rnnfast", "rnnfast ieee":
            peers[name].call()
    assert seen == ["ieee", precision, "ieee"] and torch.backends.mkldnn.rnn.fp32_precision == before
    assert [peer.precision for peer in peers.values()] == [precision, precision, "ieee", precision]


def test_what_a_row_asks_for_leaves_torchs_settings_as_they_were():
    every = torch.backends._FP32Precision("generic", "all")
    found = []
    try:
        for above in "tf32", "none":
            every.fp32_precision = above
            for precision in "none", "bf16", "ieee":
                with asking(precision):
                    found.append(torch.backends.mkldnn.rnn.fp32_precision)
            found.append(torch.backends.mkldnn.rnn.fp32_precision)
    finally:
        every.fp32_precision = "none"
    assert found == ["tf32", "bf16", "ieee", "tf32", "none", "bf16", "ieee", "none"]


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("more", [{}, {"layers": 2, "directions": 2}, {"steps": 1}], ids=str)
@pytest.mark.parametrize("name", SESSIONS)
def test_other_libraries_compute_the_same(cell, more, name):
    if needs(name):
        pytest.skip(f"not installed: {', '.join(needs(name))}")
    problem = Problem.make(Case("tiny", "", cell, 2, 5, **{"steps": 4, **more}))
    with torch.inference_mode():
        peers = all_peers(problem, False, threads=1, others=[name])
        assert name in peers and peers[name].precision == SESSIONS[name].precision
        assert first_calls(problem, False, peers)[2] == []


def test_a_wrong_output_fails_the_run(monkeypatch, round_machine, tmp_path, capsys):
    class Wrong(rnnfast.LSTM):
        def forward(self, x, hx=None):
            y, state = super().forward(x, hx)
            return y + 1e-4, state

    monkeypatch.setattr(rnnfast.nn, "LSTM", Wrong)
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

    monkeypatch.setattr(rnnfast.nn, "LSTM", Stale)
    case = Case("tiny", "", "LSTM", 2, 5, 3, modes=("inference",), fresh_weights=True)
    (row,) = run.run([case], threads=1, seconds=0.0, least=2, command="a test")["rows"]
    assert "rnnfast differs" in row["failed"]


def test_a_brief_peer_is_timed_in_three_rounds_and_the_others_go_on():
    calls = {name: lambda: None for name in ("a", "b", "c")}
    times = rounds.interleave(calls, seconds=60, least=5, most=5, min_time=1e-6, slow={"a"}, brief={"b"})
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 3, "c": 5}


def test_what_surrounds_a_peers_turns_does_so_alone_and_the_clock_waits_for_the_device():
    inside, seen, waited, parts = [], [], [], []

    @contextmanager
    def within():
        inside.append(1)
        yield
        inside.pop()

    calls = {name: lambda name=name: seen.append((name, len(inside))) for name in ("a", "b")}
    more = {"within": {"b": within}, "sync": lambda: waited.append(len(seen)), "tick": parts.append}
    rounds.interleave(calls, seconds=1e-3, least=3, min_time=1e-6, **more)
    assert set(seen) == {("a", 0), ("b", 1)}
    assert len(waited) % 2 == 0 and waited[0] == 0 and waited[-1] == len(seen)
    assert len(parts) >= 3 and parts == sorted(parts) and 0 <= parts[0] <= parts[-1] <= 1


def test_a_wrong_gradient_or_nan_is_seen():
    exact = (torch.ones(3), torch.tensor([10.0, 20.0]))
    good = (torch.ones(3), torch.tensor([10.0, 20.0]))
    for bad in (torch.tensor([10.0, 20.001]), torch.tensor([10.0, float("nan")])):
        _, wrong = rounds.compare({"torch.nn": good, "rnnfast": (good[0], bad)}, exact, "torch.nn")
        assert len(wrong) == 1 and wrong[0].startswith("rnnfast")
    assert rounds.compare({"torch.nn": good, "rnnfast": good}, exact, "torch.nn")[1] == []


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


def test_a_relu_is_one_on_both_sides_and_computes_no_curve():
    case = Case("", "", "RNN", 1, 10, 1, nonlinearity="relu")
    problem = Problem.make(case)
    assert (problem.layer.nonlinearity, problem.ours().mode) == ("relu", "RNN_RELU")
    # 400 bytes of W_ih, as many of W_hh, 4 us each, and a barrier, 1
    assert limit(case, False, [team()]) * 1e6 == pytest.approx(4 + 4 + 1)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("steps, layers, directions", [(7, 2, 2), (1, 1, 1)])
def test_a_cell_that_torch_lacks_is_measured_against_its_loop_in_plain_torch(
    monkeypatch, cell, training, steps, layers, directions
):
    monkeypatch.delattr(torch.nn, cell)
    case = Case("row", "", cell, 3, 5, steps, layers=layers, directions=directions, fresh_weights=True)
    problem = Problem.draw(case, seed=1)
    peers = all_peers(problem, training, threads=1)
    assert list(peers) == [baseline(case), "rnnfast"] == ["Python loop", "rnnfast"]
    exact = reference(problem, training)
    for peer in peers.values():
        found = peer.compare(first_outcome(peer, case)[0])
        assert len(found) == len(exact)
        for a, b in zip(found, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
