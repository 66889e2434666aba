"""All that only a GPU can show, in stages that each end at a limit: python tests/gpu_check.py --out FOLDER.

For a machine that is borrowed for minutes: no stage stops another, whatever is found lies in FOLDER at once
(at most 8 files), and a table of the stages ends it. `--run first` takes three and a half minutes at most,
`--run second` eight; nothing but Python is needed, and a stage says in one sentence what it lacks.

Most stages start the program device_check, a process for each name that it lists, so that a hang or a fault
has a name. The extension is built in the background for the GPU that is there; the stages that need it wait
for as long as the stages before them have left over.

Exit status: 0 if every stage is green or says that there is no device, else 1.
"""

import argparse
import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from gpu_machine import (
    PROGRAM,
    ROOT,
    BuildFailed,
    NoDevice,
    Red,
    Results,
    architecture,
    build_device_check,
    count,
    end_all,
    first_error,
    how,
    last_line,
    logged,
    no_device_in,
    packages,
    read,
    start,
    talk,
    tool,
)
from gpu_program import NO_DEVICE, PATIENCE, TOOL_FOUND, DeviceCheck

SHARED = {"device": 10, "primitives": 15, "cases": 60, "micro": 20, "time": 15}
# seconds of each stage, in their order
LIMITS = {
    "first": SHARED | {"tests": 60, "benchmark": 25},
    "second": SHARED | {"tests": 70, "determinism": 15, "benchmark": 150, "sanitizers": 80, "profiles": 30},
}
# Stages that run all names of a kind: the kind, how many processes at once, and how many names each runs. To
# make a CUDA context takes longer than what `micro` measures.
KINDS = {
    "primitives": ("primitive", 4, 1),
    "cases": ("case", 4, 1),
    "micro": ("micro", 1, 17),
    "time": ("time", 1, 1),
    "determinism": ("determinism", 2, 1),
}
TOOL_PATIENCE = 30  # seconds for one process under a sanitizer or a profiler, with which everything is slow
SANITIZERS = ("memcheck", "racecheck", "synccheck")
# what sanitizers and the profiler run: a name of device_check with all these words
SANITIZED = list(itertools.product(["lstm"], ("block", "cluster", "grid"), ("forward", "backward")))
PROFILED = [("h128",), ("h512",), ("h1024",)]
SECTIONS = ("SpeedOfLight", "LaunchStats", "SchedulerStats", "WarpStateStats", "InstructionStats")
NEED_PROGRAM = {"device", *KINDS, "sanitizers", "profiles"}
NEED_BUILD = {"tests", "benchmark"}


def find(names, *words):
    """The narrowest layer whose name has all these words between its dashes; of several, the first."""
    found = [name for name in names if set(words) <= set(name.split("-"))]
    if not found:
        raise Red(f"device_check lists no {' '.join(words)}")
    return min(found, key=lambda name: int((re.search(r"-h(\d+)", name) or "00")[1]))


class Check:
    """The stages: each is a method that returns what it found, or raises NoDevice or Red."""

    def __init__(self, options, limits):
        self.options, self.python, self.limits = options, options.python, limits
        self.results = Results(options.out)
        self.program = DeviceCheck(options.device_check, self.python, self.results)
        self.built, self.build_error = threading.Event(), None
        self.summary = {}  # stage -> green, red or no device; seconds; what it says
        self.begin = time.monotonic()

    # what the stages stand on

    def build(self):
        """In the background, until the last stage ends."""
        log, capability = self.results / "build.log", architecture(self.python)
        if capability is None:
            raise NoDevice("neither nvidia-smi nor torch sees a GPU to build for")
        if tool("nvcc") is None:
            raise Red("no nvcc here, neither on PATH nor in CUDA_HOME")
        if not (shutil.which("ninja") or packages(self.python)["ninja"]):
            raise Red("no ninja here, and to compile one file at a time takes too long")
        environment = {"RNNFAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability}
        os.environ.pop("MAX_JOBS", None)
        code = logged([self.python, "setup.py", "build_ext", "--inplace"], log, nice=10, **environment)
        if code != 0:
            raise BuildFailed(f"the build {how(code)}: {first_error(read(log))}")
        return f"for compute capability {capability}"

    def wait_for_build(self, until):
        if not self.built.wait(max(0.0, until - time.monotonic())):
            waited = time.monotonic() - self.begin
            printed = last_line(read(self.results / "build.log"))
            raise Red(f"the build had not ended after {waited:.0f} s; it printed last: {printed}")
        if isinstance(self.build_error, BuildFailed):  # what an earlier build has left is not to be tested
            raise Red(str(self.build_error))

    # the stages

    def device(self, until):
        line = self.program.ask_device(until)
        self.results.line(line)
        asked = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,temperature.gpu"
        try:
            smi = talk(["nvidia-smi", asked, "--format=csv"], until - time.monotonic())[1].splitlines()
        except Red as error:
            smi = [str(error)]
        versions = {"python": sys.version.split()[0], **packages(self.python)}
        self.results.line({"kind": "machine", "nvcc": tool("nvcc"), "nvidia-smi": smi, **versions})
        return line.get("name", "a device without a name")

    def kind(self, stage, until):
        kind, at_once, together = KINDS[stage]
        self.program.ask_device(until)
        names = self.program.names(kind)
        if kind == "case":  # a limit then cuts all variants alike
            random.Random(1).shuffle(names)
        asked = [(names[i : i + together], kind, ()) for i in range(0, len(names), together)]
        return self.program.run_all(asked, at_once, until, self.options.patience)

    def tests(self, until):
        """The tests marked `gpu`, of the files that have some: others may import what is not there."""
        self.wait_for_build(until)
        there = packages(self.python)
        if not there["pytest"]:
            raise Red(f"no pytest in {self.python}")
        files = [
            path
            for path in sorted((ROOT / "tests").glob("test_*.py"))
            if re.search(r"\bmark\.gpu\b|\bon_(a_)?gpu\b", path.read_text())
        ]
        command = [self.python, "-m", "pytest", "-m", "gpu", *files, "-v", "-W", "default", "--tb", "short"]
        command += ["-p", "no:benchmark", "-p", "no:cacheprovider"]
        if there["pytest-xdist"]:  # a test that takes the process with it then takes one test
            command += ["-n", "1", "--max-worker-restart", "1000"]
        if there["pytest-timeout"]:
            command += ["--timeout", "30", "--timeout-method", "thread"]
        log, seconds = self.results / "tests.log", min(self.limits["tests"], until - time.monotonic())
        code = logged(command, log, seconds)
        text = read(log)
        passed, failed = count(text)
        said = f"{len(passed)} passed, {len(failed)} failed" + f" ({', '.join(failed)[:200]})" * bool(failed)
        if code == NO_DEVICE:
            raise NoDevice(no_device_in(text))
        if code is None:
            raise Red(f"ended at its limit of {seconds:.0f} s: {said} so far")
        if code != 0:
            raise Red(f"{said}: {last_line(text)}" if not failed else said)
        return said

    def benchmark(self, until):
        self.wait_for_build(until)
        log, seconds = self.results / "benchmark.log", min(self.limits["benchmark"], until - time.monotonic())
        command = [self.python, "-m", "benchmarks.gpu", "--out", self.results.folder]
        # its clock begins when torch has been imported, and what is under way at its limit is not ended
        command += ["--limit", f"{max(1, seconds - 8):.0f}", *["--first"][: self.options.run == "first"]]
        code = logged(command, log, seconds)
        try:
            rows = json.loads(read(self.results / "gpu.json"))["rows"]
        except (ValueError, KeyError):
            rows = []
        lost = sum(row.get("speedup", 1) < 1 for row in rows)
        failed = [f"{row['name']} {row['mode']}: {row['failed']}" for row in rows if row.get("failed")]
        said = f"{len(rows)} results, {lost} lost" + "".join(f", failed: {row}" for row in failed[:3])
        if code == NO_DEVICE:
            raise NoDevice(no_device_in(read(log)))
        if code is None:
            raise Red(f"ended at its limit of {seconds:.0f} s: {said}")
        if code != 0:
            raise Red(said if failed else f"{said}: {last_line(read(log))}")
        return said

    def sanitizers(self, until):
        """One case each of a block, a cluster and the grid, forward and backward, under each tool."""
        self.program.ask_device(until)
        program = tool("compute-sanitizer")
        if program is None:
            raise Red("no compute-sanitizer here")
        # without "no", every question to which the device says no counts as an error
        options = ["--report-api-errors", "no", "--error-exitcode", TOOL_FOUND, "--print-limit", "20"]
        listed = self.program.names("case")
        names = [find(listed, *words) for words in SANITIZED]
        asked = [
            ([name], which, [program, "--tool", which, *options]) for which in SANITIZERS for name in names
        ]
        return self.program.run_all(asked, 4, until, TOOL_PATIENCE)

    def profiles(self, until):
        """Where the time goes inside a kernel, narrow to wide; clocks are left as they are."""
        self.program.ask_device(until)
        program = tool("ncu")
        if program is None:
            raise Red("no ncu here")
        listed = self.program.names("time")
        names = [find(listed, *words) for words in PROFILED]
        before = [
            program,
            "--clock-control",
            "none",
            "--kernel-name",
            "regex:resident",
            "--launch-count",
            "1",
        ]
        for section in SECTIONS:
            before += ["--section", section]
        return self.program.run_all([([name], "ncu", before) for name in names], 1, until, TOOL_PATIENCE)

    # all of them

    def outcome(self, stage, function, *arguments):
        """Runs it and keeps what it says."""
        begin, error = time.monotonic(), None
        try:
            result, said = "green", function(*arguments)
        except NoDevice as found:
            result, said, error = "no device", str(found), found
        except Red as found:
            result, said, error = "red", str(found), found
        except Exception as found:  # of this script
            result, said, error = "red", f"gpu_check.py itself: {found!r}", found
        seconds = time.monotonic() - begin
        self.summary[stage] = {"result": result, "seconds": round(seconds, 1), "said": said}
        self.results.line({"kind": "stage", "name": stage, **self.summary[stage]})
        self.results.say(f"{stage}: {result} after {seconds:.1f} s: {said}")
        return error

    def build_in_background(self):
        self.build_error = self.outcome("build", self.build)
        self.built.set()

    def run(self, stages):
        if {"tests", "benchmark"} & set(stages):
            threading.Thread(target=self.build_in_background, daemon=True).start()
        else:
            self.built.set()
        if smi := shutil.which("nvidia-smi"):
            # as long as somebody holds the device the driver keeps it awake; to wake it takes seconds, which
            # every short process would pay
            asked = "--query-gpu=timestamp,clocks.sm,clocks.mem,temperature.gpu,power.draw"
            with (self.results / "clocks.csv").open("w") as file:
                start([smi, asked, "--format=csv", "--loop=2"], stdout=file, stderr=file)
        until = self.begin
        for stage in stages:
            self.results.say(f"{stage}: begins, limit {self.limits[stage]:g} s")
            if stage in NEED_PROGRAM:
                before = time.monotonic()
                try:
                    self.program.path()
                except (NoDevice, Red):
                    pass  # the stage says so
                until += time.monotonic() - before  # no stage pays for what all need
            until += self.limits[stage]
            function = functools.partial(self.kind, stage) if stage in KINDS else getattr(self, stage)
            mine = until if stage in NEED_BUILD else min(until, time.monotonic() + self.limits[stage])
            self.outcome(stage, function, mine)
        end_all()
        self.built.wait(5)

    def report(self):
        """The exit status; the table of the stages is the last that is written and printed."""
        self.results.cut()
        widest = max(map(len, self.summary), default=0)
        table = "".join(
            f"{stage:<{widest}}  {row['result']:<9}  {row['seconds']:>6.1f} s  {row['said']}\n"
            for stage, row in self.summary.items()
        )
        bad = any(row["result"] == "red" for row in self.summary.values())
        self.results.append("summary.txt", table)
        self.results.say(f"\n{table}{'red' if bad else 'no stage is red'}; all of it: {self.results.folder}")
        return 1 if bad or not self.results.writable else 0


def limit(text):
    """STAGE=SECONDS"""
    stage, seconds = text.split("=")
    return stage, float(seconds)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder (default: %(default)s)")
    parser.add_argument("--run", choices=LIMITS, default="first")
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="only these")
    parser.add_argument(
        "--limit", nargs="+", action="extend", default=[], type=limit, metavar="STAGE=SECONDS"
    )
    parser.add_argument("--patience", type=float, default=PATIENCE, metavar="SECONDS", help="for one name")
    parser.add_argument("--device-check", type=Path, default=PROGRAM, help="one that is compiled")
    parser.add_argument("--python", default=sys.executable, help="the one with torch (default: this one)")
    parser.add_argument(
        "--build-device-check", action="store_true", help="compile it for Hopper, and no more"
    )
    options = parser.parse_args(arguments)
    check = None

    def stop(number, _):
        end_all()
        if check:
            check.summary["gpu_check.py"] = {"result": "red", "seconds": 0.0, "said": how(-number)}
            check.report()
        os._exit(1)

    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(number, stop)
    if options.build_device_check:
        try:
            build_device_check(PROGRAM, seconds=3600)
        except Red as error:
            sys.exit(f"gpu_check.py: {error}.")
        return 0
    limits = LIMITS[options.run] | dict(options.limit)
    chosen = options.stages or LIMITS[options.run]
    if unknown := {*limits, *chosen} - set(LIMITS[options.run]):
        parser.error(f"the {options.run} run has no stage {', '.join(sorted(unknown))}")
    options.device_check = options.device_check.resolve()
    check = Check(options, limits)
    check.run([stage for stage in limits if stage in chosen])
    return check.report()


if __name__ == "__main__":
    sys.exit(main())
