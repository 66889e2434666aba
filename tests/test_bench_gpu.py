"""The benchmark of a GPU against cuDNN: its rows, and what it leaves when one fails or time is up."""

import json

import pytest
import torch

from benchmarks import gpu, record


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
        (gpu.Row("LSTM", 16, 64, "bf16", projected=16), True, True),
    ],
)
def test_which_algorithm_of_cudnn_a_row_meets(row, forward, training):
    assert (row.standard("forward"), row.standard("training")) == (forward, training)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("form", [{}, {"packed": True}, {"projected": 2}], ids=str)
def test_the_gpu_bench_measures_and_compares(form):
    row = gpu.Row("LSTM", 3, 5, "fp32", steps=4, layers=2, directions=2, **form)
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
