"""tests/gpu_check.py where there is no GPU: every stage says so. With programs that only pretend to have one,
each way in which a stage can go wrong stands in its place and stops no other. And what tests/conftest.py does
with tests on a GPU."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import conftest
import device_check
import gpu_check
import gpu_machine
import pytest
from helpers import ROOT

# Programs that pretend. What they do besides stands in PRETEND, separated by commas.
HEAD = (
    f"#!{sys.executable}\nimport json, os, subprocess, sys, time\nargs = sys.argv[1:]\n"
    + """
acts = dict(act.partition("=")[::2] for act in os.environ.get("PRETEND", "").split(","))
def say(*words): print(*words, flush=True)
def hang(): time.sleep(600)
"""
)

# As tests/native/device_check, which reads its faults from RNNFAST_STUB
DEVICE_CHECK = """
stub = dict(act.partition("=")[::2] for act in os.environ.get("RNNFAST_STUB", "").split(","))
ways = [(team, way) for team in ("block", "cluster", "grid") for way in ("forward", "backward")]
kinds = {"primitive": ["primitive-a"], "micro": list("abcd"), "determinism": ["determinism-a"],
         "time": [f"time-h{n}" for n in (128, 512, 1024)], "case": [f"case-lstm-{a}-{b}" for a, b in ways]}
if args[0] == "list":
    for kind in args[1:] or kinds: say("\\n".join(kinds[kind]))
elif "no-driver" in stub:
    say(json.dumps({"kind": "device", "said": "there is no driver"})), sys.exit(77)
elif args[0] == "device":
    say(json.dumps({"kind": "device", "name": "a GPU", "said": ""}))
else:
    right = True
    for name in args[1:]:
        line = {"name": name, "result": "right", "said": "", "process": os.getpid()}
        if stub.get("hang") == name:  # and what it has started does not listen
            code = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
            code += "print(os.getpid(), file=open(os.environ['CHILD'], 'w'), flush=True); time.sleep(600)"
            subprocess.Popen([sys.executable, "-c", code])
            hang()
        if stub.get("fault") == name:
            print("an illegal address", file=sys.stderr, flush=True), os.abort()
        if stub.get("lost") == name:
            sys.exit(77)
        if stub.get("wrong") == name:
            line |= {"result": "wrong", "said": "3 of 8 are wrong"}
            right = False
        say(json.dumps(line))
    if "fault at its end" in stub: os.abort()
    sys.exit(not right)
"""
PYTHON = """
if args[0] == "-c" and "torch.cuda" in args[1]:
    sys.exit("no torch here")
if args[0] == "-c":
    there = ["torch", "ninja", "pytest", "pytest-xdist", "pytest-timeout"]
    say(json.dumps({name: None if name == acts.get("lacks") else "1" for name in there}))
elif args[0] == "setup.py":
    names = ["RNNFAST_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"]
    say("[3/20] nvcc", *(f"{name}={os.environ.get(name)}" for name in names))
    if acts.get("build") == "hangs": hang()
    if acts.get("build") == "fails":
        say("resident.cuh(3): error: expected a ;\\nninja stopped"), sys.exit(1)
elif "no GPU" in acts:
    say("no device: torch sees no GPU here"), sys.exit(77)
elif args[1] == "pytest":
    say(" ".join(args))
    say("[gw0] [  1%] PASSED tests/test_a.py::test_a[x y] \\n[gw0] [  2%] FAILED tests/test_a.py::test_b ")
    say("[gw0] [  2%] FAILED tests/test_a.py::test_b \\ntests/test_a.py::test_c PASSED   [ 3%]")
    if acts.get("tests") == "hang": hang()
    sys.exit(1 if acts.get("tests") == "fail" else 0)
else:
    say(" ".join(args))
    failed = "out of memory" if acts.get("benchmark") == "fails" else ""
    rows = [{"name": "a", "mode": "forward", "speedup": 0.5}]
    rows += [{"name": "b", "mode": "training", "failed": failed}]
    open(args[args.index("--out") + 1] + "/gpu.json", "w").write(json.dumps({"rows": rows}))
    sys.exit(bool(failed))
"""
# a tool that a program runs under
TOOL = """
found = os.path.basename(sys.argv[0]) == "compute-sanitizer" and acts.get("found") in args
code = subprocess.run(args[next(i for i, a in enumerate(args) if a.endswith("device_check")):]).returncode
say("========= ERROR SUMMARY: 1 error" if found else "========= ERROR SUMMARY: 0 errors")
sys.exit(9 if found else code)
"""
# -c SOURCE makes an object, and objects make the program
NVCC = """
if acts.get("nvcc") == "fails" and "csrc/cuda/plan.cpp" in args:
    say("csrc/cuda/plan.cpp(7): error: no such thing"), sys.exit(2)
target = args[args.index("-o") + 1]
open(target, "w").write("" if "-c" in args else open(os.environ["LINKED"]).read()), os.chmod(target, 0o755)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder with programs that pretend to have a GPU, which is all that is on PATH: no git and no make."""
    programs = {
        "device_check": DEVICE_CHECK,
        "python": PYTHON,
        "nvidia-smi": "say('9.0')",
        "nvcc": NVCC,
        "ninja": "",
        "compute-sanitizer": TOOL,
        "ncu": TOOL,
    }
    folder = tmp_path / "machine"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(HEAD + text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CUDA_HOME", str(folder / "no toolkit"))
    monkeypatch.setenv("MAX_JOBS", "1")
    monkeypatch.setenv("CHILD", str(folder / "child"))
    monkeypatch.setenv("LINKED", str(folder / "device_check"))
    return folder


class Ran:
    """What a run of the script has left."""

    def __init__(self, folder, code, printed):
        self.folder, self.code, self.printed = folder, code, printed
        written = (folder / "results.jsonl").read_text() if folder.is_dir() else printed
        lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
        self.stages = {line["name"]: line for line in lines if line["kind"] == "stage"}
        self.lines = {(line["kind"], line.get("name")): line for line in lines if line["kind"] != "stage"}

    def results(self):
        return {stage: line["result"] for stage, line in self.stages.items()}

    def said(self, stage):
        return self.stages[stage]["said"]


SCRIPT = [sys.executable, ROOT / "tests" / "gpu_check.py"]


@pytest.fixture
def check(machine, tmp_path):
    """check(*arguments) runs the script on the machine."""

    def run(*arguments, out=tmp_path / "results"):
        command = [*SCRIPT, "--out", out, "--device-check", machine / "device_check"]
        given = ["--python", machine / "python"] if "--python" not in arguments else []
        ran = subprocess.run(
            [*map(str, [*command, *given, *arguments])], capture_output=True, text=True, timeout=120
        )
        assert ran.stderr == ""
        return Ran(out, ran.returncode, ran.stdout)

    return run


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
        "tests/test_cuda.py",
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
def emulated(tmp_path_factory):
    """The real program, with this host as its device."""
    return device_check.build_emulated(tmp_path_factory.getbasetemp())


def test_what_the_real_program_says_and_how_it_ends_is_understood(emulated, check, monkeypatch):
    wrong, hang, fault = (f"time-lstm-bf16-b16-h{n}" for n in (64, 128, 256))
    monkeypatch.setenv("RNNFAST_STUB", f"wrong={wrong},hang={hang},fault={fault}")
    arguments = ("--device-check", emulated, "--patience", "6", "--limit", "time=60")
    ran = check("--stages", "device", "primitives", "time", *arguments)
    assert ran.code == 1
    assert ran.said("device") == "an emulated device"
    assert ran.said("primitives") == "11 right"
    assert ran.said("time").startswith("1 fault, 1 hang, 9 right, 1 wrong; ")
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
    monkeypatch.setenv("RNNFAST_STUB", "hang=case-lstm-block-forward")
    ran = check("--run", "second", "--stages", "sanitizers", "--limit", "sanitizers=1")
    assert re.fullmatch(r"ended at its limit: .*\d+ not begun.*", ran.said("sanitizers"))


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


# tests/conftest.py, as a plugin of a pytest with tests of its own

ON_A_GPU = """
import pytest, torch
from rnnfast import info

started, lost, waited = [], [], []

def synchronize():
    if not started or lost:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nmore")

torch.cuda.is_initialized = lambda: bool(started)
torch.cuda.synchronize = synchronize
info.cuda_failure = lambda: bool(waited) and waited.pop()
pytestmark = pytest.mark.gpu

def test_fails_before_cuda_is_there(): assert False
def test_a_block_waits_in_vain(): started.append(True), waited.append(True)
def test_is_well(): pass
def test_loses_the_context():
    lost.append(True)
    assert False
def test_comes_after(): assert not started
"""


FAILED = ["test_a_block_waits_in_vain", "test_fails_before_cuda_is_there", "test_loses_the_context"]


def pytest_with(folder, *arguments, tests=ON_A_GPU):
    (folder / "test_planted.py").write_text(tests)
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers = gpu: as in pyproject.toml\nfilterwarnings = error\n"
    )
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "conftest", "-p", "no:cacheprovider", *arguments]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    names = [[name.split("::")[-1] for name in names] for names in gpu_machine.count(ran.stdout)]
    return ran.returncode, *names, ran.stdout + ran.stderr


def test_a_lost_context_ends_the_process_and_is_blamed_on_the_test_that_lost_it(tmp_path):
    code, passed, failed, text = pytest_with(tmp_path)
    assert code == 1
    assert passed == ["test_is_well"]
    assert failed == FAILED
    assert "a block of a CUDA kernel waited in vain for another" in text
    assert "the CUDA context is lost: CUDA error: an illegal memory access was encountered" in text
    assert "test_comes_after" not in text


def test_under_xdist_the_next_test_runs_in_a_new_process(tmp_path):
    pytest.importorskip("xdist")
    code, passed, failed, text = pytest_with(tmp_path, "-p", "xdist", "-n", "1")
    assert code == 1
    assert passed == ["test_comes_after", "test_is_well"]
    assert failed == FAILED
    assert "[gw1]" in text


@pytest.mark.parametrize(
    "chosen, alone",
    [("gpu", True), ("gpu and not slow", True), ("", False), ("not gpu", False), ("not  gpu or slow", False)],
)
def test_who_chooses_the_tests_of_a_gpu_alone_is_told_that_there_is_none(chosen, alone):
    assert conftest.asks_for_a_gpu(chosen) == alone


WARNINGS = """
import warnings

def test_of_rnnfast(): warnings.warn_explicit("a", UserWarning, "a.py", 1, module="rnnfast.nn")
def test_of_torch(): warnings.warn_explicit("b", UserWarning, "b.py", 1, module="torch.nn.modules.rnn")
"""


@pytest.mark.parametrize("option, harmless", [([], []), (["--own-warnings"], ["test_of_torch"])])
def test_of_warnings_only_our_own_are_errors_where_that_is_asked_for(tmp_path, option, harmless):
    code, passed, failed, _ = pytest_with(tmp_path, *option, tests=WARNINGS)
    assert code == 1
    assert passed == harmless
    assert sorted(passed + failed) == ["test_of_rnnfast", "test_of_torch"]
