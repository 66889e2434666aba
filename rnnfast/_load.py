"""The compiled extension, or an ImportError that says in one sentence why it does not run and what to do.

The build leaves a record beside it, `_C.cpython-311-x86_64-linux-gnu.json`, of the torch that it was compiled
against and of the CUDA toolkit of its kernels: {"torch": "2.13.0", "cuda": "13.0" or null}. torch's C++
interface changes from one minor release to the next, so the record is compared before anything is loaded:
with another torch the loader would find symbols missing, or find them all and other classes behind them.
"""

import json
import re
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import torch

FOLDER = Path(__file__).parent
OURS = FOLDER / f"_C{EXTENSION_SUFFIXES[0]}"  # for this Python and this processor
BUILD = "build it with `pip install --no-build-isolation .` in rnnfast's source folder"


def _release(version: str, numbers: int) -> str:
    """The first numbers of a version: "2.13.0+cpu", 2 -> "2.13"."""
    return ".".join(re.findall(r"\d+", version)[:numbers])


def _of_another_torch(built: dict) -> str | None:
    """What is wrong with this record, or None."""
    wanted, theirs = _release(built["torch"], 2), torch.version.cuda
    if wanted != _release(torch.__version__, 2):
        return (
            f"it was built for torch {wanted}, and this is torch {torch.__version__}: install torch {wanted} "
            f"or a wheel of rnnfast for this torch, or {BUILD}."
        )
    # a torch without CUDA does not call the kernels
    if built["cuda"] and theirs and _release(built["cuda"], 1) != _release(theirs, 1):
        return (
            f"it was built for CUDA {built['cuda']}, and this torch {torch.__version__} has CUDA {theirs}: "
            f"install a torch or a wheel of rnnfast that has the other's CUDA, or {BUILD}."
        )
    return None


def _not_loaded(error: ImportError) -> str:
    """What is wrong where Python found no extension, or could not load it."""
    others = sorted(path.name for path in FOLDER.glob("_C.*.so"))
    if OURS.exists():
        return f"{error}: {BUILD}."
    if others:
        return f"{others[0]} is for another Python or processor, this one loads {OURS.name}: {BUILD}."
    if (FOLDER.parent / "setup.py").exists():
        return (
            f"this is the source folder {FOLDER.parent}, in which nothing is built: change to another folder "
            "to use the rnnfast that is installed, or build here with `make`."
        )
    return f"{error}: {BUILD}."


def load() -> ModuleType:
    """rnnfast._C, which registers the operators torch.ops.rnnfast.*.

    Raises:
        ImportError: it was built for another torch, Python or processor, or it is not there.
    """
    record, cause = OURS.with_suffix(".json"), None
    wrong = _of_another_torch(json.loads(record.read_text())) if record.exists() else None
    if wrong is None:
        try:
            from . import _C

            return _C
        except ImportError as error:
            wrong, cause = _not_loaded(error), error
    raise ImportError(f"rnnfast's compiled extension did not load: {wrong}") from cause
