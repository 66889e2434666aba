"""clients/run.py without any of the libraries: its command line, what it calls equal, the page made of it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CLIENTS = Path(__file__).resolve().parent.parent / "clients"


spec = importlib.util.spec_from_file_location("clients_run", CLIENTS / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)


def of_process(**changes):
    """What a process of a client leaves: one whose layer runs as torch's."""
    values = {"outputs": {"y": torch.ones(3)}, "losses": {}, "gradients": {}, "steps": {"w": torch.ones(2)}}
    result = {"values": values, "counts": {"aten::lstm.input": {"taken": 4}}, "layers": 1, "rnnfast": "0"}
    result |= {"version": "1", "WHAT": "an LSTM", "NOT_TAKEN": None, "NOT_CONVERTED": None}
    return result | changes


def faults(monkeypatch, **ways):
    monkeypatch.setattr(run, "process", lambda name, way: ways.get(way, of_process()))
    return run.check("it")["faults"]


def test_an_unknown_library_is_one_sentence_and_status_2():
    found = subprocess.run([sys.executable, CLIENTS / "run.py", "nothing"], capture_output=True, text=True)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith("clients: there is no client nothing; ") and found.stderr.count("\n") == 1


def test_a_library_that_is_not_installed_is_named_and_left_out(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run, "NAMES", ["no_such_library"])
    assert run.main(["no_such_library", "--out", str(tmp_path)]) == 1  # for none is left
    assert "no_such_library: not installed, left out" in capsys.readouterr().out


def test_what_is_as_by_torch_has_no_faults(monkeypatch):
    assert faults(monkeypatch) == []


@pytest.mark.parametrize("kind", ["outputs", "steps"])
@pytest.mark.parametrize("value", [1.1, float("nan")])
def test_values_that_differ_are_a_fault(monkeypatch, kind, value):
    other = of_process()
    next(iter(other["values"][kind].values()))[0] = value
    (fault,) = faults(monkeypatch, converted=other)
    assert fault.startswith(f"converted: {kind} ")


@pytest.mark.parametrize("changes", [{"counts": {}}, {"layers": 0}], ids=["not_taken", "not_converted"])
def test_what_rnnfast_does_not_run_needs_a_reason_and_nothing_else_has_one(monkeypatch, changes):
    other = of_process(**changes)
    assert len(faults(monkeypatch, enabled=other, converted=other)) == 1
    key = "NOT_TAKEN" if "counts" in changes else "NOT_CONVERTED"
    with_reason = of_process(**{key: "why"})
    assert faults(monkeypatch, torch=with_reason, enabled=other, converted=other) == []
    assert len(faults(monkeypatch, torch=with_reason)) == 1


def test_training_that_changes_no_parameter_is_a_fault(monkeypatch):
    still = of_process()
    still["values"]["steps"]["w"].zero_()
    assert faults(monkeypatch, torch=still, enabled=still, converted=still) == ["training moves no parameter"]


def test_times_are_told_beside_what_the_layers_let_one_expect():
    result = {"meta": run.meta(), "rows": [], "missing": []}
    whole = {"torch.nn": [2.0, 4.0, 9.0], "enabled": [1.6, 3.2, 7.0]}
    layers = {"torch.nn": [1.0, 2.0, 4.5], "enabled": [0.5, 1.0, 2.0]}
    part = {"whole": whole, "layers": layers, "inside": {"torch.nn": [1.0], "enabled": [0.4]}}
    row = of_process() | {"name": "it", "what": "", "not_taken": None, "not_converted": None, "faults": []}
    row |= {"enabled": {}, "converted": {}}
    assert "TIMES=1" not in run.report(result | {"rows": [row]})
    timed = row | {"times": {"threads": 2, "forward": part, "train": part}}
    told = run.report(result | {"rows": [timed]})
    assert "make test-clients TIMES=1" in told and "medians of 3 rounds in turns, 2 threads" in told
    assert "| it | 4000 | 50 % | 2.00× | 2.50× | 1.33× | 1.25× | – |" in told
    assert "| it | 4000 | 50 % | 2.00× | 1.33× | 1.25× | – |" in told
    # of a client that holds no layer that can be called alone
    timed["times"]["train"] = part | {"layers": {}, "inside": {}}
    assert "| it | 4000 | – | – | – | 1.25× | – |" in run.report(result | {"rows": [timed]})


def test_the_page_has_the_tables_of_the_committed_result():
    result = json.loads((CLIENTS / "results/clients.json").read_text())
    assert run.report(result) in run.DOCS.read_text()
    assert [row["name"] for row in result["rows"]] == run.NAMES and not result["missing"]
