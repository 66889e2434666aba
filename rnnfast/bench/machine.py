"""What is told of the machine and the libraries that a time was measured with."""

from __future__ import annotations

import importlib
import os
import platform
from pathlib import Path

import torch

from .. import __version__, info


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def versions(*names: str) -> dict[str, str]:
    """Of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.import_module(name).__version__.partition("-")[0]
        except ImportError:
            pass
    return found


def describe() -> dict[str, str]:
    """The machine, and the versions of what runs on it."""
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "cpu": cpu(),
        "isa": info.isa(),
        "float32": info.PRODUCTS[info.products()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions("onnxruntime", "openvino"),
        "rnnfast": __version__,
    }


def sentence(found: dict) -> str:
    """The same in one line; `found` also has the number of threads."""
    products = found.get("float32", "multiply-adds")
    how = "" if products == "multiply-adds" else f", large calls of float32 by {products}"
    libraries = [f"{name} {found[name]}" for name in ("torch", "onnxruntime", "openvino") if name in found]
    return (
        f"{found['cpu']} ({found['machine']}), {found['isa']}{how}, threads: {found['threads']}; "
        f"Python {found['python']}, {', '.join(libraries)}, rnnfast {found['rnnfast']}"
    )
