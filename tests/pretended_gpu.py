"""A machine with programs that only pretend to have a GPU, and a run of tests/gpu_check.py on it."""

import json
import subprocess
import sys

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
        if name.startswith(stub.get("hang", "no name")):  # and what it has started does not listen
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
