"""The command's options, and what of them cannot be."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path

import torch

from .. import _C
from .. import nn as fast
from .case import Case
from .sessions import SESSIONS, cannot, needs

DTYPES = ("float32", "bfloat16", "float16", "float64")
MODES = tuple(_C.cells())
CLASSES = {name.lower(): name for name in fast.__all__}
SWEPT = {"input": "inputs", "hidden": "hidden", "B": "batch", "T": "steps"}  # by their names in a Case
LOOP = "loop"
DEFAULTS = {"cell": "lstm", "hidden": 128, "layers": 1, "B": 1, "T": 100, "dtype": "float32"}
OF_A_LAYER = (*DEFAULTS, "input", "bidirectional", "packed", "peers", "sweep")


class Unusable(Exception):
    """What was asked for cannot be; its text is the sentence that says why."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise Unusable(message)


def size(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    try:
        if (number := float(text)) > 0:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")


def part(text: str) -> float:
    if (number := positive(text)) <= 1:
        return number
    raise argparse.ArgumentTypeError(f"expected how full the rows are, above 0 and up to 1, got {text!r}")


def sweep(text: str) -> tuple[str, list[int]]:
    """hidden=32..512 -> hidden, 32, 64, ... 512."""
    found = re.fullmatch(r"(\w+)=([0-9]+)\.\.([0-9]+)", text)
    if not found or found[1] not in SWEPT or not 1 <= int(found[2]) <= int(found[3]):
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(SWEPT)} with its least and its largest size, as hidden=32..512, "
            f"got {text!r}"
        )
    sizes = [int(found[2])]
    while 2 * sizes[-1] <= int(found[3]):
        sizes.append(2 * sizes[-1])
    return found[1], sizes


def parser() -> Parser:
    result = Parser(
        prog="python -m rnnfast.bench",
        allow_abbrev=False,
        description="Times recurrent layers of rnnfast's beside torch.nn's on this machine, with the same "
        "weights and input, in turns: one layer, or those within a model.",
    )
    result.add_argument("--cell", choices=MODES, help="default: lstm")
    result.add_argument("--input", type=size, metavar="I", help="features of a step (default: as many as H)")
    result.add_argument("--hidden", type=size, metavar="H", help="units (default: 128)")
    result.add_argument("--layers", type=size, metavar="L", help="default: 1")
    result.add_argument("--bidirectional", action="store_true", default=None)
    result.add_argument("-B", "--batch", dest="B", type=size, metavar="B", help="rows (default: 1)")
    result.add_argument("-T", "--steps", dest="T", type=size, metavar="T", help="steps (default: 100)")
    result.add_argument("--dtype", choices=DTYPES, help="default: float32")
    result.add_argument(
        "--packed", type=part, metavar="PART", help="rows of unlike lengths, this part of T on average"
    )
    result.add_argument("--training", action="store_true", help="forward and backward (default: inference)")
    result.add_argument(
        "--peers",
        nargs="+",
        choices=(*SESSIONS, LOOP),
        help="beside torch.nn (default: what is installed of onnxruntime and openvino; loop: a Python loop "
        "over torch.nn's cells)",
    )
    result.add_argument(
        "--sweep", type=sweep, metavar="SIZE=LEAST..LARGEST", help="of hidden, input, B or T, by doubling"
    )
    result.add_argument(
        "--model",
        metavar="WHERE:FUNCTION",
        help="package.module:function or path/to/file.py:function, which returns a model and a tuple of "
        "sample inputs: times the model and each recurrent layer of torch.nn's in it",
    )
    result.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    result.add_argument("--threads", type=size, metavar="N", default=torch.get_num_threads())
    result.add_argument("--seconds", type=positive, default=4.0, help="of timing in all (default: 4)")
    result.add_argument("--json", action="store_true", help="print the result as JSON")
    result.add_argument(
        "--out", type=Path, metavar="FOLDER", help="leave the JSON, and a sweep's chart, there"
    )
    return result


def read(arguments: list[str] | None) -> argparse.Namespace:
    """The options; of one layer with `cases`, one or those of a sweep."""
    found = parser().parse_args(arguments)
    check_device(found.device)
    if found.out is not None:
        try:
            found.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unusable(f"--out {found.out} cannot be made a folder ({error.strerror})") from None
    if found.model is not None:
        for name in OF_A_LAYER:
            if getattr(found, name) is not None:
                raise Unusable(
                    f"{'-' * (1 + (len(name) > 1))}{name} describes a layer, and --model brings its own"
                )
        return found
    for name, value in DEFAULTS.items():
        if getattr(found, name) is None:
            setattr(found, name, value)
    if found.sweep and found.out and importlib.util.find_spec("matplotlib") is None:
        raise Unusable("a sweep's chart in --out needs matplotlib: pip install matplotlib")
    name, sizes = found.sweep or (None, [None])
    found.cases = [case(found, name, size) for size in sizes]
    found.peers = peers(found)
    return found


def check_device(device: str) -> None:
    if device == "cpu":
        return
    if device.partition(":")[0] != "cuda":
        raise Unusable(f"--device should be cpu or cuda, got {device!r}")
    if not torch.cuda.is_available():
        raise Unusable(f"there is no GPU for --device {device}: torch sees none here")
    if not _C.build_info()["cuda"]:
        raise Unusable(f"this build of rnnfast has no CUDA kernels for --device {device}")
    try:
        torch.empty(0, device=device)
    except RuntimeError as error:
        raise Unusable(f"--device {device} cannot be used ({first_line(error)})") from None


def case(found: argparse.Namespace, swept: str | None, size: int | None) -> Case:
    sizes = {"inputs": found.input, "hidden": found.hidden, "batch": found.B, "steps": found.T}
    if swept is not None:
        sizes[SWEPT[swept]] = size
    lengths = None
    if found.packed is not None:
        rows, steps = sizes["batch"], sizes["steps"]
        if rows == 1:
            raise Unusable("--packed is of rows of unlike lengths, and B is 1: give 2 or more")
        # T, falling as a power whose mean is the part of T
        lengths = [round(steps * ((rows - row) / rows) ** (1 / found.packed - 1)) for row in range(rows)]
        lengths = tuple(max(1, length) for length in lengths)
    family, _, nonlinearity = found.cell.partition("_")
    return Case(
        found.cell,
        "asked for",
        CLASSES[family],
        layers=found.layers,
        directions=2 if found.bidirectional else 1,
        nonlinearity=nonlinearity or "tanh",
        dtype=found.dtype,
        lengths=lengths,
        **sizes,
    )


def peers(found: argparse.Namespace) -> list[str]:
    """The peers beside torch.nn and rnnfast: those asked for, or what is installed and can do it."""
    why = cannot(found.cases[0], found.training)
    why = "it runs on the CPU here" if not why and found.device != "cpu" else why
    if found.peers is None:
        exact = [name for name, session in SESSIONS.items() if session.precision == "none"]
        return [] if why else [name for name in exact if not needs(name)]
    for name in found.peers:
        if name == LOOP:
            if found.packed is not None:
                raise Unusable("the loop takes no packed rows")
        elif lacking := needs(name):
            raise Unusable(f"{name} cannot be asked: pip install {' '.join(lacking)}")
        elif why:
            raise Unusable(f"{name} cannot be asked for this layer: {why}")
    return list(dict.fromkeys(found.peers))


def first_line(error: BaseException) -> str:
    """An error in one line: its class and how its text begins."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
