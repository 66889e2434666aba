"""A build that cannot run beside this torch or Python says so in one sentence, before it is loaded."""

import json
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

from rnnfast import _load

PACKAGE = Path(_load.__file__).parent
SUFFIX = EXTENSION_SUFFIXES[0]  # .cpython-311-x86_64-linux-gnu.so
THIS = ".".join(torch.__version__.split(".")[:2])


@pytest.fixture
def package(tmp_path):
    """A copy of the package in which nothing is built."""
    left_out = shutil.ignore_patterns("_C.*", "__pycache__")
    return shutil.copytree(PACKAGE, tmp_path / "rnnfast", ignore=left_out)


# An editable install would lead the copy to the extension that it has built.
HIDE = "import sys; sys.modules['rnnfast._C'] = None"


def refused(package, before=HIDE):
    """What `import rnnfast` says last, of the copy of the package."""
    script = f"{before}\nimport rnnfast"
    ran = subprocess.run([sys.executable, "-c", script], cwd=package.parent, capture_output=True, text=True)
    assert ran.returncode != 0
    last = ran.stderr.splitlines()[-1]
    start = "ImportError: rnnfast's compiled extension did not load: "
    assert last.startswith(start) and last.endswith("."), ran.stderr
    assert "undefined symbol" not in ran.stderr
    return last.removeprefix(start)


def test_another_torch_is_refused_and_both_are_named(package):
    (package / f"_C{SUFFIX}").write_bytes(b"not loaded")
    (package / f"_C{SUFFIX}").with_suffix(".json").write_text('{"torch": "2.9.1+cu128", "cuda": null}')
    said = refused(package)
    assert said.startswith(f"it was built for torch 2.9, and this is torch {torch.__version__}: install ")
    assert "pip install --no-build-isolation ." in said


@pytest.mark.parametrize(
    "built, theirs, words",
    [
        ({"torch": torch.__version__, "cuda": None}, None, None),
        ({"torch": torch.__version__, "cuda": None}, "13.0", None),
        ({"torch": f"{THIS}.7+cu126", "cuda": "12.6"}, "12.8", None),
        ({"torch": f"{THIS}.0a0+git1234567", "cuda": "12.6"}, None, None),
        ({"torch": torch.__version__, "cuda": "12.6"}, "13.0", "it was built for CUDA 12.6, and this torch"),
        ({"torch": f"{THIS}9.0", "cuda": None}, None, f"it was built for torch {THIS}9, and this is"),
        ({"torch": "1.13.0", "cuda": None}, None, "it was built for torch 1.13"),
    ],
)
def test_torch_has_the_same_minor_release_and_cuda_the_same_major(monkeypatch, built, theirs, words):
    monkeypatch.setattr("torch.version.cuda", theirs)
    wrong = _load._of_another_torch(built)
    assert wrong is None if words is None else wrong.startswith(words)


def test_another_python_or_processor_is_one_sentence(package):
    other = "_C.cpython-39-riscv64-linux-gnu.so"
    (package / other).touch()
    words = f"{other} is for another Python or processor, this one loads _C{SUFFIX}: build it with "
    assert refused(package).startswith(words)


def test_an_extension_that_does_not_load_is_one_sentence(package):
    (package / f"_C{SUFFIX}").write_bytes(b"no library")
    assert "file too short" in refused(package, before="")


@pytest.mark.parametrize(
    "has_setup, words", [(True, "this is the source folder"), (False, "pip install --no-build-isolation .")]
)
def test_an_import_without_the_extension_says_what_to_do(package, has_setup, words):
    if has_setup:
        (package.parent / "setup.py").touch()
    assert words in refused(package)


def test_a_build_leaves_a_record_of_its_torch():
    record = json.loads(_load.OURS.with_suffix(".json").read_text())
    built = _load.load().build_info()
    assert record == {"torch": torch.__version__, "cuda": built["cuda"] or None}
    assert record["torch"].startswith(built["torch"])
