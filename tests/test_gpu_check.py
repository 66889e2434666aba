"""tests/gpu_check.py where there is no GPU: every stage says so. With programs that only pretend to have one,
each way in which a stage can go wrong stands in its place and stops no other."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import device_check
import gpu_check
import gpu_machine
import pytest
from helpers import ROOT
from pretended_gpu import SCRIPT

pytest_plugins = ["pretended_gpu"]


def test_the_limits_leave_time_to_start_a_machine():
    first, second = (sum(limits.values()) for limits in gpu_check.LIMITS.values())
    assert first <= 210 and second <= 480


@pytest.mark.parametrize("run", list(gpu_check.LIMITS))
def test_without_a_gpu_every_stage_says_so_and_is_not_red(check, machine, monkeypatch, run):
    (machine / "nvidia-smi").write_text("#!/bin/false\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("RNNFAST_STUB", "no-driver")
    monkeypatch.setenv("PRETEND", "no GPU")
    # the second run would import torch three times more
    ran = check("--run", run, *["--python", sys.executable][: 2 * (run == "first")])
    assert ran.code == 0
    assert ran.results() == dict.fromkeys(["build", *gpu_check.LIMITS[run]], "no device")
    for stage, limit in gpu_check.LIMITS[run].items():
        assert ran.stages[stage]["seconds"] <= limit
        expected = {"tests": "torch sees no GPU here", "benchmark": "torch sees no GPU here"}
        assert ran.said(stage) == expected.get(stage, "there is no driver")
    files = list(ran.folder.iterdir())
    assert len(files) <= 8
    for file in files:
        assert re.fullmatch(r"[A-Za-z0-9._-]+", file.name) and file.stat().st_size < 16 << 20
    assert (ran.folder / "summary.txt").read_text() in ran.printed


def test_with_a_gpu_every_stage_does_its_work(check):
    ran = check("--run", "second")
    assert ran.code == 0, ran.printed
    assert set(ran.results().values()) == {"green"}
    assert list(ran.stages)[-5:] == list(gpu_check.LIMITS["second"])[-5:]
    assert ran.said("device") == "a GPU" and ran.lines["device", "a GPU"]
    assert ran.said("cases") == "6 right" and ran.said("determinism") == "1 right"
    assert ran.lines["time", "time-h512"]["seconds"] > 0
    # what was built, and for which device
    built = (ran.folder / "build.log").read_text()
    assert "RNNFAST_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 MAX_JOBS=None" in built
    tests = (ran.folder / "tests.log").read_text()
    for words in (
        "-m gpu",
        "tests/test_cuda_ops.py",
        "tests/test_cuda_modules.py",
        "-W default",
        "-n 1",
        "--timeout 30 --timeout-method thread",
    ):
        assert words in tests
    assert "test_examples" not in tests
    assert ran.said("benchmark") == "2 results, 1 lost"
    assert "--limit 142" in (ran.folder / "benchmark.log").read_text()
    assert ran.said("sanitizers") == "18 right" and ran.said("profiles") == "3 right"
    for tool in ("memcheck", "racecheck", "synccheck"):
        assert ran.lines[tool, "case-lstm-grid-backward"]["result"] == "right"
    assert (ran.folder / "device_check.log").read_text().count("ERROR SUMMARY: 0") == 21


def test_a_sanitizer_gets_the_narrowest_layer():
    names = ["case-gru-grid-forward-h9", "case-lstm-grid-forward-h1024", "case-lstm-grid-forward-h129"]
    assert gpu_check.find(names, "lstm", "grid", "forward") == names[2]
    assert gpu_check.find(names, "h1024") == names[1]
    with pytest.raises(gpu_machine.Red, match="device_check lists no lstm block"):
        gpu_check.find(names, "lstm", "block")


def is_gone(process):
    """Whether a process ends soon; one that nobody has waited for counts as ended."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().split(") ")[1][0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_is_wrong_hangs_or_faults_has_its_own_line_and_the_others_run(check, machine, monkeypatch):
    faults = (
        "wrong=case-lstm-grid-forward",
        "hang=case-lstm-block-forward",
        "fault=case-lstm-cluster-backward",
    )
    monkeypatch.setenv("RNNFAST_STUB", ",".join([*faults, "lost=b"]))
    ran = check("--patience", "1", "--stages", "device", "primitives", "cases", "micro", "time")
    assert ran.code == 1
    assert list(ran.results().values()) == ["green", "green", "red", "red", "green"]
    found = {
        name: (line["result"], line["said"]) for (kind, name), line in ran.lines.items() if kind == "case"
    }
    assert found.pop("case-lstm-grid-forward") == ("wrong", "3 of 8 are wrong")
    assert found.pop("case-lstm-block-forward") == ("hang", "did not end within 1 s")
    assert found.pop("case-lstm-cluster-backward") == ("fault", "ended by SIGABRT: an illegal address")
    assert list(found.values()) == [("right", "")] * 3
    assert "1 fault, 1 hang, 3 right, 1 wrong; " in ran.said("cases")
    assert "case-lstm-grid-forward: wrong, 3 of 8 are wrong" in (ran.folder / "summary.txt").read_text()
    assert "an illegal address" in (ran.folder / "device_check.log").read_text()
    assert ran.lines["micro", "b"]["result"] == "no device"
    assert is_gone(int((machine / "child").read_text()))


@pytest.fixture(scope="session")
def emulated(programs):
    """The real program, with this host as its device."""
    return device_check.build_emulated(programs)


def test_what_the_real_program_says_and_how_it_ends_is_understood(emulated, check, monkeypatch):
    wrong, hang, fault = (f"time-lstm-bf16-b16-h{n}" for n in (64, 128, 256))
    monkeypatch.setenv("RNNFAST_STUB", f"wrong={wrong},hang={hang},fault={fault}")
    arguments = ("--device-check", emulated, "--patience", "6", "--limit", "time=60")
    ran = check("--stages", "device", "primitives", "time", *arguments)
    assert ran.code == 1
    assert ran.said("device") == "an emulated device"
    assert ran.said("primitives") == "12 right"
    assert ran.said("time").startswith("1 fault, 1 hang, 19 right, 1 wrong; ")
    lines = {name: ran.lines["time", name] for name in (wrong, hang, fault)}
    assert [line["result"] for line in lines.values()] == ["wrong", "hang", "fault"]
    assert lines[wrong]["said"]
    assert lines[fault]["said"].startswith("ended by SIGABRT: emulation: a load of 16 bytes")
    assert ran.lines["time", "time-gru-bf16-b16-h512"]["us_a_step"] > 0
    monkeypatch.setenv("RNNFAST_STUB", "driver=12020")
    ran = check("--stages", "device", "cases", "--device-check", emulated)
    assert ran.code == 0 and ran.results() == {"device": "no device", "cases": "no device"}
    assert ran.said("cases") == "the driver knows CUDA 12.2, and this program needs 13.0"


@pytest.mark.parametrize("fault, result", [("hang", "hang"), ("fault", "fault"), ("wrong", "wrong")])
def test_after_a_name_that_is_not_right_others_run_in_a_new_process(check, monkeypatch, fault, result):
    monkeypatch.setenv("RNNFAST_STUB", f"{fault}=b")
    ran = check("--patience", "1", "--stages", "micro")
    lines = {name: ran.lines["micro", name] for name in "abcd"}
    assert [line["result"] for line in lines.values()] == ["right", result, "right", "right"]
    assert lines["a"]["process"] != lines["c"]["process"] == lines["d"]["process"]


def test_a_fault_after_the_last_line_is_not_right(check, monkeypatch):
    monkeypatch.setenv("RNNFAST_STUB", "fault at its end")
    ran = check("--stages", "micro")
    assert [ran.lines["micro", name]["result"] for name in "abcd"] == ["right"] * 3 + ["fault"]


def test_a_stage_is_ended_at_its_limit_and_the_others_run(check, monkeypatch):
    monkeypatch.setenv("PRETEND", "tests=hang")
    monkeypatch.setenv("RNNFAST_STUB", "hang=b")
    ran = check("--limit", "micro=1", "cases=0", "--limit", "tests=1")
    assert ran.code == 1
    assert ran.said("cases").startswith("device_check device: did not end in time")
    assert ran.said("micro") == "ended at its limit: 1 cut, 2 not begun, 1 right"
    assert ran.lines["micro", "b"]["said"] == "the stage ended before it did"
    assert (
        ran.said("tests") == "ended at its limit of 1 s: 2 passed, 1 failed (tests/test_a.py::test_b) so far"
    )
    green = {"device", "primitives", "time", "build", "benchmark"}
    assert {stage for stage, result in ran.results().items() if result == "green"} == green
    assert all(line["seconds"] < 6 for line in ran.stages.values())


def test_names_for_which_there_is_no_time_are_counted(check, monkeypatch):
    monkeypatch.setenv("RNNFAST_STUB", "hang=case")  # every one: the four that run at once never end
    ran = check("--run", "second", "--stages", "sanitizers", "--limit", "sanitizers=2")
    assert ran.said("sanitizers") == "ended at its limit: 4 cut, 14 not begun"


def test_tests_wait_for_the_build_and_say_what_it_printed_last(check, monkeypatch):
    monkeypatch.setenv("PRETEND", "build=hangs")
    ran = check("--stages", "tests", "benchmark", "--limit", "tests=1", "benchmark=1")
    assert ran.code == 1
    printed = "[3/20] nvcc RNNFAST_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 MAX_JOBS=None"
    for stage, seconds in ("tests", 1), ("benchmark", 2):
        assert ran.said(stage) == f"the build had not ended after {seconds} s; it printed last: {printed}"
    assert ran.said("build").startswith("the build ended by SIGTERM")


def test_a_build_that_fails_is_not_taken_for_an_earlier_one(check, monkeypatch):
    monkeypatch.setenv("PRETEND", "build=fails")
    ran = check("--stages", "time", "tests", "benchmark")
    assert ran.results() == {"time": "green", "build": "red", "tests": "red", "benchmark": "red"}
    for stage in ("build", "tests", "benchmark"):
        assert ran.said(stage) == "the build ended with exit status 1: resident.cuh(3): error: expected a ;"


def test_red_tests_rows_and_sanitizers_are_named(check, monkeypatch):
    monkeypatch.setenv("PRETEND", "tests=fail,benchmark=fails,found=racecheck")
    ran = check("--run", "second", "--stages", "tests", "benchmark", "sanitizers", "profiles")
    assert ran.code == 1
    assert ran.said("tests") == "2 passed, 1 failed (tests/test_a.py::test_b)"
    assert ran.said("benchmark") == "2 results, 1 lost, failed: b training: out of memory"
    assert ran.said("sanitizers").startswith("12 right, 6 wrong; ")
    line = ran.lines["racecheck", "case-lstm-grid-forward"]
    assert (line["result"], line["said"]) == ("wrong", "========= ERROR SUMMARY: 1 error")
    assert ran.results()["profiles"] == "green"


@pytest.mark.parametrize(
    "lacks, stage, said",
    [
        ("nvcc", "build", "no nvcc here, neither on PATH nor in CUDA_HOME"),
        ("ninja", "build", "no ninja here, and to compile one file at a time takes too long"),
        ("pytest", "tests", "no pytest in "),
        ("compute-sanitizer", "sanitizers", "no compute-sanitizer here"),
        ("ncu", "profiles", "no ncu here"),
    ],
)
def test_what_a_machine_lacks_is_said_by_the_stage_that_needs_it(
    check, machine, monkeypatch, lacks, stage, said
):
    if lacks != "pytest":
        (machine / lacks).unlink()
    monkeypatch.setenv("PRETEND", f"lacks={lacks}")
    stages = {"build": ["tests"]}.get(stage, [stage])
    ran = check("--run", "second", "--stages", "device", "benchmark", *stages)
    assert ran.said(stage).startswith(said)
    assert ran.code == 1 and list(ran.results().values()).count("red") == 1


def test_without_nvidia_smi_device_check_finds_the_device(check, machine):
    (machine / "nvidia-smi").unlink()
    ran = check("--stages", "device", "tests")
    assert ran.code == 0
    assert ran.results() == {"device": "green", "build": "no device", "tests": "green"}


def test_a_folder_that_cannot_be_written_is_said_and_the_stages_go_on(check, tmp_path):
    (tmp_path / "file").touch()
    ran = check("--stages", "device", "cases", out=tmp_path / "file" / "results")
    assert ran.code == 1
    assert f"{tmp_path}/file/results cannot be written (Not a directory): lines are printed" in ran.printed
    assert ran.results() == {"device": "green", "cases": "green"}
    assert sum(kind == "case" for kind, _ in ran.lines) == 6


def test_who_ends_the_script_ends_all_that_it_started(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("RNNFAST_STUB", "hang=b")
    command = [*SCRIPT, "--out", tmp_path / "out", "--device-check", machine / "device_check", "--stages"]
    process = subprocess.Popen([*map(str, [*command, "device", "micro"])], stdout=subprocess.PIPE, text=True)
    child, end = machine / "child", time.monotonic() + 20
    while not (child.exists() and child.read_text().strip()) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 1
    process.stdout.close()
    assert is_gone(int(child.read_text()))
    assert re.search(r"gpu_check.py +red .*ended by SIGTERM", (tmp_path / "out" / "summary.txt").read_text())


def test_device_check_is_compiled_where_no_ready_made_one_starts(machine, tmp_path, monkeypatch):
    target = tmp_path / "built" / "device_check"
    gpu_machine.build_device_check(target, "9.0")
    assert subprocess.run([target, "list", "micro"], capture_output=True, text=True).stdout == "a\nb\nc\nd\n"
    assert [path.name for path in target.parent.iterdir()] == ["device_check"]
    target.unlink()
    monkeypatch.setenv("PRETEND", "nvcc=fails")
    with pytest.raises(gpu_machine.Red, match=r"does not compile: csrc/cuda/plan.cpp\(7\): error: no such"):
        gpu_machine.build_device_check(target, "9.0")
    (machine / "nvcc").unlink()
    with pytest.raises(gpu_machine.Red, match="no nvcc here, and no device_check that starts"):
        gpu_machine.build_device_check(target, "9.0")
    assert not target.exists()


def test_device_checks_sources_are_all_there_but_the_emulated_ones():
    sources = [str(path) for path in gpu_machine.device_check_sources()]
    assert len(sources) == len(set(sources)) and all((ROOT / path).exists() for path in sources)
    assert "csrc/cuda/device.cu" in sources and "tests/native/device_check/main.cpp" in sources
    assert not [path for path in sources if "emulated" in path]


def test_of_a_log_that_is_too_long_the_ends_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_machine, "MOST_BYTES", 10)
    (tmp_path / "out").mkdir()
    results = gpu_machine.Results(tmp_path / "out")
    (results / "tests.log").write_text("begin, and much, end")
    results.cut()
    assert (results / "tests.log").read_text() == "begin\n[...]\n, end"
