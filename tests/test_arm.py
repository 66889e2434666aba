"""The kernels on 64-bit Arm, cross-compiled and run by an emulator: `make fuzz-arm`, where both are there.

Debian/Ubuntu: sudo apt install g++-aarch64-linux-gnu qemu-user. They have no torch: this is the fuzz of
tests/native without sanitizers, which an emulated processor cannot run under.
"""

import os
import re
import shutil
import subprocess

import pytest
from helpers import PROCESSORS, ROOT
from test_native import build, sources_of_fuzz
from torch.utils.cpp_extension import include_paths

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LAYERS = int(os.environ.get("RNNFAST_FUZZ_ARM", 0))
ISAS, ISA_FLAG = PROCESSORS["arm"]
FLAGS = [
    "-std=c++20",
    "-O1",
    "-pthread",
    "-ffp-contract=off",
    ISA_FLAG,
    "-DRNNFAST_CHECKED=1",
    "-Wall",
]
FLAGS += ["-Werror", f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in include_paths())]

pytestmark = pytest.mark.skipif(
    not (LAYERS and shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"not `make fuzz-arm`, no {COMPILER}, or no {EMULATOR}",
)


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def fuzz(programs):
    """The command of the program, on a processor that has everything."""
    program, wrong = build(programs, sources_of_fuzz(ISAS), [COMPILER, *FLAGS], "-static")
    assert not wrong, wrong[-6000:]
    return [EMULATOR, "-cpu", "max", program]


@pytest.mark.timeout(900)
def test_random_layers_are_right_with_every_instruction_set(fuzz):
    ran = run(*fuzz, str(LAYERS), timeout=800)
    assert ran.returncode == 0, ran.stderr[-6000:]
    layers, teams = map(int, re.match(r"(\d+) layers, (\d+) of \d+ calls by a team", ran.stdout).groups())
    assert layers == LAYERS and teams > 0


@pytest.mark.parametrize("isa", ISAS)
def test_a_set_is_there_and_finds_a_wrong_number(fuzz, isa):
    assert run(*fuzz, "20", "1", isa).returncode == 0
    assert "expected" in run(*fuzz, "100", "1", isa, "wrong").stderr


def test_the_functions_of_the_cells_are_as_exact_as_elsewhere(fuzz):
    ran = run(*fuzz, "math")
    assert ran.returncode == 0, ran.stdout
    assert all(f"{isa} " in ran.stdout for isa in ISAS)


def test_a_processor_without_bfloat16_does_without(fuzz):
    older = [EMULATOR, "-cpu", "cortex-a72", fuzz[-1]]
    assert run(*older, "20", "1", "neon").returncode == 0
    assert "'neon_bf16' cannot run here" in run(*older, "1", "1", "neon_bf16").stderr
