"""`python -m rnnfast.bench`: what it prints, what it leaves, and one sentence for what it cannot do."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bench_helpers import team

import rnnfast
from rnnfast import _C
from rnnfast.bench import cell, model, progress
from rnnfast.bench.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests" / "bench_models.py"
SMALL = ("--hidden", "8", "-T", "4", "--threads", "1", "--seconds", "0.001")
PEERS = ("--peers", "onnxruntime")


@pytest.fixture
def round_machine(monkeypatch):
    """Nothing is measured of the machine, and no process is started: both have tests of their own."""
    monkeypatch.setattr(cell, "Team", lambda threads: team(threads, 1e18, 1e18, 0.0, 1e18))
    monkeypatch.setattr(cell, "in_process", lambda function, *arguments, start: 4096)


@pytest.fixture
def bench(capsys):
    """bench(option, ...) -> (exit status, stdout, stderr)."""
    before = torch.get_num_threads()

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    yield run
    torch.set_num_threads(before)


def found(bench, *arguments):
    """The result of a run that went well."""
    status, out, err = bench(*arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_a_layer_is_measured_end_to_end_by_a_process_of_its_own():
    command = [sys.executable, "-m", "rnnfast.bench", *SMALL, "-B", "64", "-T", "200", "--json"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    row = json.loads(ran.stdout)
    assert row["shape"] == "T=200 B=64 H=8" and row["mode"] == "inference" and row["rounds"] >= 3
    assert {"torch.nn", "onnxruntime", "rnnfast"} <= row["peers"].keys()
    for peer in row["peers"].values():
        assert 0 < peer["q1_ms"] <= peer["median_ms"] <= peer["q3_ms"]
        assert peer["difference"] < 1e-5
        assert peer["of_limit"] == pytest.approx(row["limit"]["ms"] / peer["median_ms"])
        assert peer["memory_bytes"] >= 0
    assert row["peers"]["rnnfast"]["memory_bytes"] >= 4 * 200 * 64 * 8  # the output
    assert row["peers"]["torch.nn"]["speedup"] == 1
    assert row["explain"].startswith("LSTM: fused CPU kernel, torch.float32")
    assert row["about"]["threads"] == 1 and row["about"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "options, shape, peers",
    [
        (("--cell", "gru"), "T=4 B=1 H=8", ["torch.nn", "onnxruntime", "rnnfast"]),
        (("--cell", "rnn_tanh", "-B", 3), "T=4 B=3 H=8", ["torch.nn", "onnxruntime", "rnnfast"]),
        (
            ("--cell", "rnn_relu", "--input", 5, "--layers", 2, "--bidirectional", "--peers", "loop"),
            "T=4 B=1 I=5 H=8 relu 2 layers both directions",
            ["torch.nn", "Python loop", "rnnfast"],
        ),
        (("--cell", "rnn_relu", *PEERS), "T=4 B=1 H=8 relu", ["torch.nn", "onnxruntime", "rnnfast"]),
        (("--dtype", "bfloat16", "-B", 2), "T=4 B=2 H=8 bfloat16", ["torch.nn", "rnnfast"]),
        (("--dtype", "float64"), "T=4 B=1 H=8 float64", ["torch.nn", "rnnfast"]),
        (
            ("-B", 4, "--packed", 0.65),
            "T=4 B=4 H=8 packed 2 to 4",
            ["torch.nn", "torch.nn padded", "rnnfast padded", "rnnfast"],
        ),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("training", [False, True])
def test_the_asked_layer_is_measured(bench, round_machine, options, shape, peers, training):
    if training and "onnxruntime" in options:
        return
    row = found(bench, *SMALL, *options, *["--training"] * training)
    assert row["shape"] == shape and row["mode"] == ("training" if training else "inference")
    expected = [name for name in peers if not (training and name == "onnxruntime")]
    assert [name for name in row["peers"] if name != "openvino"] == expected
    assert ("not saving" in row["explain"]) is not training


def test_the_table_says_times_ratio_difference_memory_and_limit(bench, round_machine):
    status, out, err = bench(*SMALL, *PEERS)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["ms", "quartiles"])
    assert lines[start].split("  ")[-1] == "of the limit"
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == [
        "torch.nn",
        "onnxruntime",
        "rnnfast",
    ]
    assert "1.00×" in lines[start + 1] and " 4 " in lines[start + 1]  # KiB
    assert "This machine's limit" in out and "LSTM: fused CPU kernel" in out and "threads: 1" in out


def test_without_a_compiler_the_limit_is_left_out_and_the_reason_said(bench, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(cell, "in_process", lambda *arguments, start: 0)
    rnnfast.bench.roofline.probe.cache_clear()
    status, out, _ = bench(*SMALL)
    assert status == 0
    assert (
        "No limit is given: there is no C++ compiler (no-such-compiler) to measure the machine with." in out
    )


def test_a_limit_that_a_call_has_beaten_is_measured_again():
    machine, again = cell.Machine(1), []
    machine.teams = [team(1)]
    machine.teams[0].measure_again = lambda: again.append(1)
    case = rnnfast.bench.case.Case("", "", "RNN", 1, 10, 1)
    least = machine.limit(case, False, "cpu")["ms"]
    machine.limit(case, False, "cpu", beaten_by=2 * least)
    assert again == []
    machine.limit(case, False, "cpu", beaten_by=least / 2)
    assert again == [1]


def test_a_wrong_output_is_said_and_is_status_1(bench, round_machine, monkeypatch):
    class Wrong(rnnfast.LSTM):
        def forward(self, x, hx=None):
            y, state = super().forward(x, hx)
            return y + 1e-3, state

    monkeypatch.setattr(rnnfast.nn, "LSTM", Wrong)
    status, out, _ = bench(*SMALL)
    assert status == 1 and "WRONG, T=4 B=1 H=8: rnnfast differs by" in out


def test_a_sweep_leaves_its_table_its_chart_and_its_json(bench, round_machine, tmp_path):
    status, out, err = bench(*SMALL, "--sweep", "hidden=2..20", "--out", tmp_path / "new")
    assert (status, err) == (0, "")
    assert re.findall(r"^ *([0-9]+) ", out, re.MULTILINE) == ["2", "4", "8", "16"]
    assert "LSTM T=4 B=1, inference" in out and "over torch.nn" in out
    assert (tmp_path / "new" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    left = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert left["over"] == "hidden" and left["sizes"] == [2, 4, 8, 16]
    assert [row["shape"] for row in left["rows"]] == [f"T=4 B=1 H={h}" for h in (2, 4, 8, 16)]


@pytest.mark.parametrize("swept, letter", [("B=2..4", "B"), ("T=2..4", "T"), ("input=2..4", "I")])
def test_each_size_can_be_swept_without_matplotlib(bench, round_machine, monkeypatch, swept, letter):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    rest = ("--hidden", 3, "--threads", 1, "--seconds", "0.001", "-B", 3, "--packed", "0.5")
    rows = found(bench, *rest, "--sweep", swept)["rows"]
    assert len(rows) == 2
    assert all(f"{letter}={size}" in row["shape"] for size, row in zip((2, 4), rows, strict=True))


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_every_recurrent_layer_of_a_strangers_model_is_found_and_timed(bench, mode):
    arguments = ("--model", f"{MODELS}:everything", "--threads", 1, "--seconds", "0.01")
    result = found(bench, *arguments, *["--training"] * (mode == "training"))
    assert result["class"] == "Everything" and result["mode"] == mode
    named = {one["name"]: one for one in result["layers"]}
    assert list(named) == ["lstm", "gru", "rnn", "cell", "gru_cell", "rnn_cell"]
    assert result["not_called"] == ["unused"] and result["stays"] == ""
    assert [one["calls"] for one in named.values()] == [1, 1, 1, 3, 3, 3]
    assert named["gru"]["input"] == "20×16 float32"  # the packed rows, 9 + 7 + 4
    assert named["lstm"]["input"] == "3×9×6 float32"
    for one in (*named.values(), {"times": result["whole"]}):
        assert list(one["times"]) == ["torch.nn", "enabled", "converted"]
        assert all(0 < times["median_ms"] for times in one["times"].values())
    for one in named.values():
        assert ("not saving" in one["explain"]) is (mode == "inference")
    assert result["enabled"] == "12 taken"
    assert all(by < 1e-5 for by in result["differences"].values())
    assert 0 < result["share"] <= 1


def test_a_layers_gradients_are_those_that_the_model_asks_of_it(bench, monkeypatch):
    real, asked = torch.autograd.grad, set()

    def grad(ys, wanted, *more, **options):
        asked.add(tuple(tuple(tensor.shape) for tensor in wanted))
        return real(ys, wanted, *more, **options)

    monkeypatch.setattr(model.torch.autograd, "grad", grad)
    arguments = ("--model", f"{MODELS}:frozen", "--training", "--threads", 1, "--seconds", "0.01")
    assert [one["name"] for one in found(bench, *arguments)["layers"]] == ["first", "second"]
    assert asked == {((6, 5), (6,)), ((6, 2, 6),)}  # of the linear layer, and of the input of the second


def test_only_the_turns_of_enabled_are_enabled():
    seen = []
    contest = model.Contest(training=False)
    contest.add("layer", lambda module: seen.append((module, _C.aten.is_active())), "torch.nn's", "converted")
    times = contest.times(SimpleNamespace(seconds=1e-3, device="cpu"), progress.Bar(1))
    assert list(times["layer"]) == ["torch.nn", "enabled", "converted"]
    assert all(len(values) >= 3 for values in times["layer"].values())
    seen = seen[3:]  # the first call of each says how long it takes
    assert set(seen) == {("torch.nn's", False), ("torch.nn's", True), ("converted", False)}
    assert not _C.aten.is_active()


def test_the_share_says_what_one_may_expect():
    whole = {"torch.nn": [10.0, 20.0, 10.0], "enabled": [5.0, 10.0, 5.0]}  # the second round was a busy one
    layers = [
        {"torch.nn": [4.0, 8.0, 4.0], "enabled": [1.0, 2.0, 1.0]},
        {"torch.nn": [4.0, 8.0, 4.0], "enabled": [3.0, 6.0, 3.0]},
    ]
    assert model.expected(whole, layers) == {
        "share": pytest.approx(0.8),
        "expected": {"enabled": pytest.approx(1 / (0.2 + 0.4))},
        "measured": {"enabled": pytest.approx(2)},
    }


def test_the_models_page_says_the_share_and_what_became_of_the_calls(bench):
    status, out, err = bench("--model", f"{MODELS}:alone", "--threads", 1, "--seconds", "0.01")
    assert (status, err) == (0, "a model that talks\n")
    for said in ("GRU of", "the model itself", "the whole model", "Recurrent layers take", "1 taken"):
        assert said in out
    assert "one may expect a model" in out and "fused CPU kernel" in out


def test_a_layer_that_is_not_converted_is_named_and_timed_all_the_same(bench):
    result = found(bench, "--model", f"{MODELS}:with_its_own_forward", "--threads", 1, "--seconds", "0.01")
    assert "0, Own" in result["stays"]
    (layer,) = result["layers"]
    assert layer["explain"] == "" and layer["times"]["enabled"]["median_ms"] > 0


def test_a_model_is_found_by_the_name_of_its_module(bench, tmp_path, monkeypatch):
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "models.py").write_text(MODELS.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rest = ("--threads", 1, "--seconds", "0.01", "--json")
    status, out, err = bench("--model", "strangers.models:alone", *rest)
    assert (status, err) == (0, "a model that talks\n")
    assert [one["name"] for one in json.loads(out)["layers"]] == ["the model itself"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--hidden", "0"], "--hidden: expected a whole number of 1 or more, got '0'"),
        (["-B", "-1"], "got '-1'"),
        (["-T", "many"], "got 'many'"),
        (["--hidden", "100000000"], "LSTM T=100 B=1 H=100000000 cannot be run here (RuntimeError: "),
        (["--cell", "tcn"], "invalid choice: 'tcn'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--packed", "0.5"], "B is 1"),
        (["--packed", "1.5", "-B", "2"], "got '1.5'"),
        (["--packed", "0.5", "-B", "2", "--peers", "loop"], "the loop takes no packed rows"),
        (["--seconds", "0"], "above 0"),
        (["--sweep", "hidden=64..8"], "got 'hidden=64..8'"),
        (["--sweep", "width=8..64"], "expected one of input, hidden, B, T"),
        (["--device", "tpu"], "cpu or cuda"),
        (
            ["--peers", "onnxruntime", "--training"],
            "onnxruntime cannot be asked for this layer: it only infers",
        ),
        (["--peers", "onnxruntime", "--dtype", "bfloat16"], "not of bfloat16"),
        (["--peers", "keras"], "invalid choice: 'keras'"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--out", "/dev/null/here"], "--out /dev/null/here cannot be made a folder"),
        (["--model", "no_such_package.models:make"], "No module named 'no_such_package'"),
        (["--model", "no_such_file.py:make"], "there is no file no_such_file.py"),
        (["--model", str(MODELS)], "package.module:function or path/to/file.py:function"),
        (["--model", f"{MODELS}:nothing"], "has no function 'nothing'"),
        (["--model", f"{MODELS}:NOT_CALLABLE"], "has no function 'NOT_CALLABLE'"),
        (["--model", f"{MODELS}:that_raises"], "raised ValueError: no weights"),
        (["--model", f"{MODELS}:that_returns_no_pair"], "returned a LSTM, expected a model and a tuple"),
        (["--model", f"{MODELS}:of_odd_inputs"], "inputs of type int"),
        (["--model", f"{MODELS}:of_a_wrong_shape"], "cannot be called with its inputs (RuntimeError: "),
        (["--model", f"{MODELS}:without_a_layer"], "the model has no recurrent layer"),
        (["--model", f"{MODELS}:that_calls_none"], "calls none of its 1 recurrent layers"),
        (["--model", f"{MODELS}:that_calls_none", "--training"], "calls none of its 1 recurrent layers"),
        (["--model", f"{MODELS}:alone", "--hidden", "8"], "--hidden describes a layer"),
        (["--model", f"{MODELS}:alone", "-B", "8"], "-B describes a layer"),
        (["--model", f"{MODELS}:alone", "--sweep", "B=1..2"], "--sweep describes a layer"),
    ],
    ids=lambda value: " ".join(value).replace(str(MODELS), "FILE") if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_sentence_and_status_2(bench, arguments, words):
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1 and err.startswith("rnnfast.bench: ") and words in err


def test_a_file_that_does_not_run_is_one_sentence(bench, tmp_path):
    for text, words in (
        ("def f(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("exit(3)\n", "SystemExit"),
    ):
        (tmp_path / "broken.py").write_text(text)
        status, out, err = bench("--model", f"{tmp_path / 'broken.py'}:f")
        assert (status, out) == (2, "") and words in err and len(err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_one_sentence(bench):
    status, out, err = bench("--device", "cuda")
    assert (status, out) == (2, "")
    assert err == "rnnfast.bench: there is no GPU for --device cuda: torch sees none here\n"


def test_a_library_that_is_not_there_is_absent_unless_it_was_asked_for(bench, round_machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime" not in found(bench, *SMALL)["peers"]
    status, out, err = bench(*SMALL, *PEERS)
    assert (status, out) == (2, "")
    assert err == "rnnfast.bench: onnxruntime cannot be asked: pip install onnxruntime\n"


def test_a_chart_without_matplotlib_is_refused_before_anything_is_measured(bench, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = bench(*SMALL, "--sweep", "B=1..2", "--out", tmp_path)
    assert (status, out) == (2, "") and "pip install matplotlib" in err


def test_enabled_before_is_off_while_torch_is_timed(bench, round_machine, monkeypatch):
    monkeypatch.setenv("RNNFAST_ENABLE", "1")
    rnnfast.enable()
    rnnfast.info.reset_counts()
    found(bench, *SMALL)
    assert rnnfast.info.counts() == {}


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_the_bar_is_one_line_that_goes_away(monkeypatch, has_tqdm, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if not has_tqdm:
        monkeypatch.setattr(progress, "tqdm", None)
    with progress.Bar(2) as bar:
        bar.begin("first")
        bar.begin("second")
        bar.within(0.5)
    said = capsys.readouterr().err
    assert "second" in said and "75 %" in said and "\n" not in said.strip("\n")
    assert said.endswith(("\r", "\033[K"))


def test_there_is_no_bar_where_stderr_is_no_terminal(capsys):
    with progress.Bar(1) as bar:
        bar.begin("first")
    assert capsys.readouterr().err == ""


def test_the_console_script_is_this_command_and_the_probes_source_is_in_the_wheel():
    project = (ROOT / "pyproject.toml").read_text()
    assert '[project.scripts]\nrnnfast-bench = "rnnfast.bench.__main__:main"\n' in project
    assert '\n"rnnfast.bench" = ["probe.cpp"]' in project.split("[tool.setuptools.package-data]")[1]
    assert (Path(rnnfast.__file__).parent / "bench" / "probe.cpp").exists()
