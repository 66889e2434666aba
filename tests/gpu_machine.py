"""What tests/gpu_check.py stands on: processes that end at a limit with all that they started, what a machine
has for it, the compiling of device_check, and the folder of results."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "device_check"
OWN = Path("tests/native/device_check")  # its sources; the kernels come with them
LOGS = ["device_check.log", "build.log", "tests.log", "benchmark.log", "clocks.csv"]
FILES = ["results.jsonl", *LOGS, "gpu.json", "summary.txt"]
UNFINISHED = "gpu.json.part"  # of a benchmark that was killed while it saved
MOST_BYTES = 8 << 20  # of a log
COMPILING = 150  # seconds that device_check may take to compile


class NoDevice(Exception):
    """There is no GPU: neither green nor red."""


class Red(Exception):
    """What went wrong, in one sentence."""


class BuildFailed(Red):
    """The extension did not compile."""


LIVE = set()  # processes that have not ended
OVER = threading.Event()  # none is started any more


def start(command, **options):
    """A process with a group of its own."""
    if OVER.is_set():
        raise Red("all was ended before this began")
    try:
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, start_new_session=True, **options)
    except OSError as error:
        raise Red(f"{command[0]} does not start: {error.strerror}") from error
    LIVE.add(process)
    return process


def end(process):
    """Ends a process and all that it started: they are asked, and two seconds later forced."""
    for number in signal.SIGTERM, signal.SIGKILL:
        try:
            os.killpg(process.pid, number)
            process.wait(2)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass  # who does not even die, inside a driver say, is left behind


def end_all():
    OVER.set()
    for process in list(LIVE):
        end(process)


def talk(command, seconds):
    """Exit status, or None if it did not end in time; what it printed; what it said on stderr."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(command, text=True, errors="replace", **pipes)
    try:
        output, errors = process.communicate(timeout=max(0.0, seconds))
        return process.returncode, output, errors
    except subprocess.TimeoutExpired:
        end(process)
    finally:
        LIVE.discard(process)
    try:
        return None, *process.communicate(timeout=2)
    except subprocess.TimeoutExpired:
        return None, "", ""


def logged(command, log, seconds=None, nice=0, **environment):
    """Exit status, or None if it did not end in time; all that it says goes to the log."""
    with log.open("ab") as file:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
        process = start(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
    if nice:
        os.setpriority(os.PRIO_PROCESS, process.pid, nice)
    try:
        return process.wait(seconds and max(0.0, seconds))
    except subprocess.TimeoutExpired:
        end(process)
        return None
    finally:
        LIVE.discard(process)


def how(code):
    """How a process ended."""
    if code is None:
        return "did not end in time"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def json_lines(output):
    """The lines that are objects of JSON."""
    for line in output.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def last_line(text):
    lines = [line.strip()[:300] for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1] if lines else "nothing was said"


def first_error(text):
    """The line that says why something did not compile: that of the first error, or the last of all."""
    found = re.search(r"^.*\berror\b\s*:.*$", text, re.MULTILINE | re.IGNORECASE)
    return last_line(found[0] if found else text)


def no_device_in(text):
    """What pytest and the benchmark say without a GPU."""
    found = re.search(r"no device: (.*?)[ !]*$", text, re.MULTILINE)
    return found[1] if found else last_line(text)


def count(text):
    """The names of the tests that have passed, and that have failed, in what pytest -v printed so far."""
    words = r"PASSED|FAILED|ERROR"
    # with pytest-xdist the word stands before the name
    found = re.findall(rf"^\[gw\d+\] \[ *\d+%\] ({words}) (.*?) *$", text, re.MULTILINE)
    found += [pair[::-1] for pair in re.findall(rf"^(\S+::.*?) ({words})\b", text, re.MULTILINE)]
    failed = sorted({name for word, name in found if word != "PASSED"})
    return sorted({name for word, name in found} - set(failed)), failed


def read(log):
    return log.read_text(errors="replace") if log.exists() else ""


def tool(name):
    """Where a program of the CUDA toolkit is, or None."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    return shutil.which(name) or shutil.which(name, path=toolkit)


@functools.cache
def architecture(python):
    """The compute capability of the first GPU, "9.0"; None without one."""
    asked = [
        ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
        [python, "-c", "import torch; print(*torch.cuda.get_device_capability(), sep='.')"],
    ]
    for command in asked:
        try:
            code, output, _ = talk(command, 30)
        except Red:
            continue
        if code == 0 and (found := re.match(r"\d+\.\d+$", output.strip(), re.MULTILINE)):
            return found[0]
    return None


def packages(python):
    """The versions of those that count here, by their names; None for those that are not there."""
    names = ["torch", "setuptools", "ninja", "pytest", "pytest-xdist", "pytest-timeout"]
    code = (
        "import importlib.metadata as m, json\n"
        "def version(name):\n"
        "    try: return m.version(name)\n"
        "    except m.PackageNotFoundError: return None\n"
        f"print(json.dumps({{name: version(name) for name in {names}}}))"
    )
    status, output, errors = talk([python, "-c", code], 30)
    if status != 0:
        raise Red(f"{python} says: {last_line(errors)}")
    return json.loads(output)


def device_check_sources():
    """The slowest to compile come first."""
    kernels = ("resident_tf32.cu", "resident_bf16.cu", "resident_f16.cu", "device.cu", "plan.cpp")
    own = [path.relative_to(ROOT) for path in sorted((ROOT / OWN).rglob("*.c*"))]
    own = [path for path in own if path.suffix in (".cu", ".cpp") and "emulated" not in str(path)]
    return [*(Path("csrc/cuda", name) for name in kernels), *own]


def build_device_check(target, capability="9.0", seconds=COMPILING):
    """Compiles it, each file by a process of its own; raises Red."""
    nvcc, number, until = tool("nvcc"), capability.replace(".", ""), time.monotonic() + seconds
    if nvcc is None:
        raise Red("no nvcc here, and no device_check that starts")
    sources = device_check_sources()
    target.parent.mkdir(parents=True, exist_ok=True)

    def nvcc_does(*arguments):
        code, output, errors = talk([nvcc, *arguments], until - time.monotonic())
        if code != 0:
            why = f"not within {seconds} s" if code is None else first_error(errors + output)
            raise Red(f"device_check does not compile: {why}")

    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = [Path(folder, f"{i}.o") for i in range(len(sources))]
        flags = ["-std=c++20", "-O3", f"-gencode=arch=compute_{number},code=sm_{number}"]
        flags += ["-Icsrc", f"-I{OWN}", f"-I{OWN}/gpu"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda a, b: nvcc_does(*flags, "-c", a, "-o", b), sources, objects))
        # static, so that what was built on one machine runs on another
        static = ["-cudart", "static", "-Xcompiler=-static-libstdc++,-static-libgcc"]
        nvcc_does(*flags[2:3], *static, *objects, "-o", Path(folder, "device_check"))
        Path(folder, "device_check").replace(target)


class Results:
    """The folder; where it cannot be written, a temporary one, and lines are printed instead."""

    def __init__(self, folder):
        self.writable, self.lock = True, threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (*FILES, UNFINISHED):  # of an earlier run
                (folder / name).unlink(missing_ok=True)
            (folder / FILES[0]).touch()
        except OSError as error:
            elsewhere = Path(tempfile.mkdtemp())
            why = f"{folder} cannot be written ({error.strerror})"
            self.say(f"{why}: lines are printed, and logs lie in {elsewhere}")
            folder, self.writable = elsewhere, False
        self.folder = folder.resolve()

    def __truediv__(self, name):
        return self.folder / name

    def line(self, line):
        """One of results.jsonl, there before the next process starts."""
        self.append("results.jsonl", json.dumps(line) + "\n")
        if not self.writable:
            self.say(json.dumps(line))

    def say(self, text):
        """Printed by one thread at a time, or two would share a line."""
        with self.lock:
            print(text, flush=True)

    def append(self, name, text):
        with self.lock:
            try:
                with (self / name).open("a") as file:
                    file.write(text)
            except OSError as error:
                if self.writable:
                    self.say(f"{self / name} cannot be written ({error.strerror}): lines are printed")
                self.writable = False

    def cut(self):
        """Of a log that is too long the middle is left out, and what is no result goes."""
        (self / UNFINISHED).unlink(missing_ok=True)
        for path in map(self.__truediv__, LOGS):
            if path.exists() and path.stat().st_size > MOST_BYTES:
                data, half = path.read_bytes(), MOST_BYTES // 2
                path.write_bytes(data[:half] + b"\n[...]\n" + data[-half:])
