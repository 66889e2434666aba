"""clang++ compiles, links and runs the kernels, as README says. Skipped where there is none."""

import shutil
import subprocess

import pytest
from helpers import ISA_FLAG, ISAS, ROOT
from test_native import build, sources_of_fuzz
from torch.utils.cpp_extension import include_paths

NAMES = ["clang++", *(f"clang++-{version}" for version in range(25, 13, -1))]
CLANG = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ["-std=c++20", "-O1", "-pthread", "-ffp-contract=off", "-DRNNFAST_CHECKED=1", ISA_FLAG]
FLAGS += ["-Wall", "-Werror", f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in include_paths())]

pytestmark = pytest.mark.skipif(CLANG is None, reason="no clang++ here")


@pytest.mark.timeout(600)
def test_random_layers_are_right(programs):
    program, wrong = build(programs, sources_of_fuzz(ISAS), [CLANG, *FLAGS])
    assert not wrong, wrong[-6000:]
    ran = subprocess.run([program, "200"], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-6000:]
    assert ran.stdout.startswith("200 layers")
    ran = subprocess.run([program, "100", "1", "", "wrong"], capture_output=True, text=True, timeout=300)
    assert "expected" in ran.stderr
