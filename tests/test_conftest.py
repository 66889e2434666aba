"""tests/conftest.py as a plugin of a pytest with tests of its own: tests on a GPU, and warnings."""

import os
import re
import subprocess
import sys

import conftest
import gpu_machine
import pytest
import torch
from helpers import ROOT

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


@pytest.mark.parametrize("workers", [0, 1])
def test_under_xdist_what_compiles_comes_first(tmp_path, workers):
    pytest.importorskip("xdist")
    tests = "def test_is_quick(): pass\ndef test_compiles(programs): pass\n"
    code, _, _, text = pytest_with(tmp_path, "-p", "xdist", "-n", str(workers), tests=tests)
    assert code == 0
    assert (text.index("::test_compiles") < text.index("::test_is_quick")) == bool(workers)


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


@pytest.mark.parametrize("option", [[], ["--own-warnings"]], ids=["as_it_is", "asked_for"])
def test_of_warnings_only_our_own_are_errors_beside_another_torch_or_where_asked_for(tmp_path, option):
    code, passed, failed, _ = pytest_with(tmp_path, *option, tests=WARNINGS)
    assert code == 1
    known = conftest.warns_as_known(torch.__version__) and not option
    assert passed == ([] if known else ["test_of_torch"])
    assert sorted(passed + failed) == ["test_of_rnnfast", "test_of_torch"]


def test_the_torch_of_the_makefile_is_the_one_whose_warnings_are_known():
    makefile = (ROOT / "Makefile").read_text()
    version = re.search(r"^TORCH +\?= torch==(\S+)$", makefile, re.MULTILINE)[1]
    assert conftest.warns_as_known(version, (3, 11, 7))
    others = ["2.11.0+cu130", "2.14.0.dev20260901+cpu", "3.13.0"]
    assert not any(conftest.warns_as_known(other, (3, 11, 7)) for other in others)
    assert not conftest.warns_as_known(version, (3, 13, 0))  # of which torch's compiler says that it is slow
