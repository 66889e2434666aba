"""The kernels without torch, under sanitizers: tests/native/fuzz runs random small layers through them.

RNNFAST_FUZZ says how many layers; `make fuzz` runs 10,000 with each sanitizer.
"""

import functools
import os
import re
import shutil
import subprocess

import compiling
import pytest
from helpers import COMPILER, ISA_FLAG, ISAS, PROCESSOR, ROOT
from torch.utils.cpp_extension import include_paths

LAYERS = int(os.environ.get("RNNFAST_FUZZ", 1000))

ADDRESS, THREAD = "address,undefined", "thread"  # two programs: they do not go together
FLAGS = ["-std=c++20", "-Og", "-g1", "-pthread", "-ffp-contract=off", "-fno-sanitize-recover=all"]
# -Wtsan: the thread sanitizer does not know fences. The one in team.cpp orders atomics alone.
FLAGS += ["-DRNNFAST_CHECKED=1", "-Wno-tsan", ISA_FLAG]
FLAGS += [f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in include_paths())]

LAUNCHERS = [[], ["setarch", "-R"]] if shutil.which("setarch") else [[]]


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def sources_of_fuzz(isas):
    """The slowest to compile come first; the fuzz includes team.cpp."""
    names = [*(f"isa_{isa}" for isa in isas), "dispatch", "profile", "plan"]
    return [*(ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in names), ROOT / "tests/native/fuzz/main.cpp"]


def build(programs, sources, compiler, *links):
    """The program, and what went wrong on the way: nothing, if it is there."""
    made = compiling.compile_all(programs, sources, *compiler)
    made.append(compiling.make(programs, "fuzz", [*compiler, *links, *(one.file for one in made)]))
    return made[-1].file, compiling.wrong(made)


@pytest.fixture(scope="module")
def fuzz(programs):
    """A function of a sanitizer that gives the command of its program, compiled at the first call."""

    @functools.cache
    def command(sanitizer):
        compiler = [*COMPILER, *FLAGS, f"-fsanitize={sanitizer}"]
        empty, wrong = build(programs, [ROOT / "tests/native/empty.cpp"], compiler)
        if wrong:
            pytest.skip(f"{COMPILER[0]} does not link -fsanitize={sanitizer}: {wrong.strip()[-200:]}")
        # some kernels place programs where the thread sanitizer cannot work, unless told not to
        started = [(launcher, run(*launcher, empty)) for launcher in LAUNCHERS]
        launcher = next((launcher for launcher, ran in started if ran.returncode == 0), None)
        if launcher is None:
            pytest.skip(f"-fsanitize={sanitizer} does not start here: {started[0][1].stderr.strip()[-200:]}")
        program, wrong = build(programs, sources_of_fuzz(ISAS), compiler)
        assert not wrong, wrong[-6000:]
        return [*launcher, program]

    return command


@pytest.mark.parametrize("sanitizer", [ADDRESS, THREAD])
def test_random_layers_on_random_teams_are_right_and_clean(fuzz, sanitizer):
    ran = run(*fuzz(sanitizer), str(LAYERS), timeout=60 + LAYERS)
    assert ran.returncode == 0, ran.stderr[-6000:]
    print(f"{sanitizer}: {ran.stdout}", end="")
    layers, teams = map(int, re.match(r"(\d+) layers, (\d+) of \d+ calls by a team", ran.stdout).groups())
    assert layers == LAYERS
    assert teams > 0


@pytest.mark.parametrize(
    "sanitizer, fault, message",
    [
        (ADDRESS, "short", "heap-buffer-overflow"),
        (ADDRESS, "differs", "differs between one thread and a team"),
        (ADDRESS, "wrong", r"\] is .*, expected"),
        pytest.param(
            ADDRESS, "mxcsr", "MXCSR", marks=pytest.mark.skipif(PROCESSOR != "x86", reason="no MXCSR here")
        ),
        (THREAD, "race", "data race"),
    ],
)
def test_a_planted_fault_is_found(fuzz, sanitizer, fault, message):
    ran = run(*fuzz(sanitizer), "100", "1", "", fault, timeout=120)
    assert ran.returncode != 0
    assert re.search(message, ran.stderr), ran.stderr[-6000:]
    # and how to meet it again
    assert re.search(r"^fuzz: fuzz 1 \d+ ", ran.stderr, re.MULTILINE)
