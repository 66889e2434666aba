"""The directions of docs/design.md, read from the sources and from the compiled objects."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ISA_FLAG, ISAS

import rnnfast

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = Path(rnnfast.__file__).parent

# The one door to torch's thread pool that csrc/cpu may use, a C header, and the one file that may use it.
POOL = ("cpu/team.cpp", "<torch/csrc/stable/c/shim.h")

# what the kernels of every device and the ops agree on: it includes nothing
SHARED = '"types.h'


def includes(folder):
    """(file, header) of every include line under a folder of csrc; a header keeps its < or " in front."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".h", ".cpp", ".cu", ".cuh"}:
            headers = re.findall(r'^\s*#\s*include\s*([<"][^>"]+)[>"]', path.read_text(), re.MULTILINE)
            found += [(path.relative_to(folder.parent).as_posix(), header) for header in headers]
    return found


def is_system(header):
    return re.fullmatch(r"<(sys/)?[\w.]+", header) is not None


def is_standard(header):
    return re.fullmatch(r"<[a-z_]+", header) is not None


def forbidden(csrc):
    """Every include that goes against the directions: cells <- cpu, cells <- cuda, torch's ops on top."""
    wrong = []
    for file, header in includes(csrc):
        if file == f"{csrc.name}/types.h" and not is_standard(header):
            wrong.append(("types.h", header))
    for file, header in includes(csrc / "cells"):
        if not is_standard(header) and not header.startswith(('"cells/', SHARED)):
            wrong.append((file, header))
    for file, header in includes(csrc / "cpu"):
        if (
            not is_system(header)
            and not header.startswith(('"cells/', '"cpu/', SHARED))
            and (file, header) != POOL
        ):
            wrong.append((file, header))
    for file, header in includes(csrc / "ops"):
        # what names the device in its name, and module.cpp, which tells of all
        if header.startswith('"cuda/') and not file.startswith(("ops/cuda_", "ops/module.")):
            wrong.append((file, header))
    for file, header in includes(csrc / "cuda"):
        if not is_system(header) and not header.startswith(('"cells/', '"cuda/', SHARED)):
            wrong.append((file, header))
    return wrong


def test_cells_and_kernels_include_only_what_stands_below_them():
    assert includes(CSRC / "cpu")
    assert forbidden(CSRC) == []


@pytest.mark.parametrize(
    "file, line",
    [
        ("cells/lstm.h", "#include <torch/library.h>"),
        ("cells/lstm.h", "#include <immintrin.h>"),
        ("cells/lstm.h", '#include "cpu/pack-inl.h"'),
        ("cpu/plan.cpp", "#include <ATen/core/Tensor.h>"),
        ("cpu/plan.cpp", "#include <torch/csrc/stable/c/shim.h>"),
        ("cpu/plan.cpp", '#include "cuda/plan.h"'),
        ("cpu/plan.cpp", '#include "ops/checks.h"'),
        ("types.h", '#include "ops/checks.h"'),
        ("cells/lstm.h", '#include "ops/checks.h"'),
        ("ops/cpu_layer.cpp", '#include "cuda/plan.h"'),
        ("ops/layer.h", '#include "cuda/kernels.h"'),
        ("cuda/lstm.cu", '#include "cpu/plan.h"'),
        ("cuda/lstm.cu", "#include <c10/cuda/CUDAStream.h>"),
    ],
)
def test_an_include_in_the_wrong_direction_is_found(tmp_path, file, line):
    copied = shutil.copytree(CSRC, tmp_path / "csrc")
    (copied / file).parent.mkdir(exist_ok=True)
    with open(copied / file, "a") as source:
        source.write(f"\n{line}\n")
    assert [found for found, _ in forbidden(copied)] == [file]


def python_modules(package):
    """{"rnnfast.nn.layers": its file, ...} of a package, and of those in it."""
    paths = sorted(package.rglob("*.py"))
    names = [".".join(path.relative_to(package.parent).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def imports(source, package="rnnfast"):
    """(modules of our own, other packages) that a module of `package` imports anywhere in it."""
    own, other = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            own |= {name for name in names if name.startswith("rnnfast.")}
            other |= {name.split(".")[0] for name in names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            other.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1])
            names = [node.module] if node.module else [alias.name for alias in node.names]
            own |= {f"{above}.{name}" for name in names if name != "__version__"}
    return own, other


MODULE = {"rnnfast.nn._common", "rnnfast.nn._tools", "rnnfast.nn._twins", "rnnfast._paths"}

# What a module may import of our own: only what stands below it in this list, so there is no circle.
# nn -> functional -> _paths -> ops -> _load -> _C, and reference knows only torch.
BELOW = {
    "rnnfast": {
        "rnnfast.nn",
        "rnnfast.functional",
        "rnnfast.reference",
        "rnnfast._batching",
        "rnnfast._flops",
        "rnnfast._decompositions",
        "rnnfast._enable",
    },
    "rnnfast.torchrl": {"rnnfast.nn"},
    "rnnfast.__main__": {"rnnfast._enable"},
    "rnnfast.bench.__main__": {
        *(f"rnnfast.bench.{name}" for name in ("cell", "machine", "model", "options", "progress", "sweep")),
        "rnnfast.bench.tables",
        "rnnfast._enable",
    },
    "rnnfast.bench": set(),
    "rnnfast.bench.sweep": {f"rnnfast.bench.{name}" for name in ("cell", "progress", "tables")},
    "rnnfast.bench.cell": {
        *(
            f"rnnfast.bench.{name}"
            for name in ("case", "memory", "options", "peers", "processes", "progress")
        ),
        *(f"rnnfast.bench.{name}" for name in ("roofline", "rounds", "tables")),
    },
    "rnnfast.bench.model": {
        *(f"rnnfast.bench.{name}" for name in ("find", "options", "progress", "rounds", "tables")),
        "rnnfast._enable",
        "rnnfast.info",
        "rnnfast.nn",
        "rnnfast.testing",
    },
    "rnnfast.bench.find": {"rnnfast.bench.options"},
    "rnnfast.bench.options": {
        "rnnfast.bench.case",
        "rnnfast.bench.sessions",
        "rnnfast.nn",
        "rnnfast._C",
    },
    "rnnfast.bench.memory": {"rnnfast.bench.case", "rnnfast.bench.peers", "rnnfast.info"},
    "rnnfast.bench.peers": {
        *(f"rnnfast.bench.{name}" for name in ("case", "rounds", "sessions")),
        "rnnfast.nn",
        "rnnfast.reference",
        "rnnfast._C",
    },
    "rnnfast.bench.sessions": {"rnnfast.bench.case"},
    "rnnfast.bench.roofline": {"rnnfast.bench.case", "rnnfast._C"},
    "rnnfast.bench.machine": {"rnnfast.info"},
    "rnnfast.bench.rounds": {"rnnfast.testing"},
    "rnnfast.bench.processes": set(),
    "rnnfast.bench.progress": set(),
    "rnnfast.bench.tables": set(),
    "rnnfast.bench.case": set(),
    "rnnfast._enable": {"rnnfast.ops"},
    "rnnfast._batching": {"rnnfast.ops"},
    "rnnfast._flops": {"rnnfast.ops"},
    "rnnfast.testing": set(),
    "rnnfast.nn": {
        "rnnfast.nn.layers",
        "rnnfast.nn.cells",
        "rnnfast.nn.deep_transition",
        "rnnfast.nn.freeze",
        "rnnfast.nn.convert",
    },
    "rnnfast.nn.layers": {*MODULE, "rnnfast.nn.freeze", "rnnfast._episodes"},
    "rnnfast.nn.cells": {*MODULE, "rnnfast.nn.freeze", "rnnfast._episodes"},
    "rnnfast.nn.deep_transition": {*MODULE, "rnnfast.functional"},
    "rnnfast.nn.convert": {"rnnfast.nn._tools", "rnnfast.nn._twins"},
    "rnnfast.nn.freeze": {"rnnfast.nn._twins"},
    "rnnfast.nn._tools": {"rnnfast.nn._twins"},
    "rnnfast.nn._twins": set(),
    "rnnfast.nn._common": set(),
    "rnnfast.functional": {"rnnfast._episodes", "rnnfast._paths"},
    "rnnfast._paths": {
        "rnnfast._autocast",
        "rnnfast._by_torch",
        "rnnfast._episodes",
        "rnnfast.info",
        "rnnfast.ops",
        "rnnfast.reference",
    },
    "rnnfast._episodes": {"rnnfast.ops"},
    "rnnfast.info": {"rnnfast.ops"},
    "rnnfast._decompositions": {"rnnfast._by_torch", "rnnfast.ops", "rnnfast.reference"},
    "rnnfast._by_torch": {"rnnfast.ops", "rnnfast.reference"},
    "rnnfast._autocast": set(),
    "rnnfast.ops": {"rnnfast._load", "rnnfast.reference"},
    "rnnfast._load": {"rnnfast._C"},
    "rnnfast.reference": set(),
    "rnnfast._C": set(),
}


def test_every_python_module_is_listed_above_what_it_may_import():
    assert set(BELOW) - {"rnnfast._C"} == set(python_modules(PACKAGE))
    order = list(BELOW)
    for module, below in BELOW.items():
        assert below <= set(order[order.index(module) + 1 :]), module


@pytest.mark.parametrize("module", [module for module in BELOW if module != "rnnfast._C"])
def test_a_python_module_imports_only_what_stands_below_it(module):
    path = python_modules(PACKAGE)[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    own, other = imports(path.read_text(), package)
    assert own <= BELOW[module]
    assert "rnnfast" not in other
    if module == "rnnfast.reference":
        assert other - {"collections", "typing"} == {"torch"}


def test_imports_are_found_in_every_form():
    source = (
        "import torch.nn\nfrom . import ops, _C\nfrom .info import isa\ndef f():\n    import rnnfast.testing"
    )
    found = {"rnnfast.ops", "rnnfast._C", "rnnfast.info", "rnnfast.testing"}
    assert imports(source) == (found, {"torch", "rnnfast"})
    source = "from .. import _paths\nfrom ..ops import CELLS\nfrom . import cells\nfrom .layers import LSTM"
    found = {"rnnfast._paths", "rnnfast.ops", "rnnfast.nn.cells", "rnnfast.nn.layers"}
    assert imports(source, "rnnfast.nn") == (found, set())


def compile_object(source, target, *flags):
    compiler = os.environ.get("CXX", "c++").split()
    subprocess.run([*compiler, *flags, "-c", source, "-o", target], check=True)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """The object file of each instruction set: the build's own, or compiled here where there is none."""
    newest = {}
    for path in sorted((ROOT / "build").rglob("isa_*.o"), key=lambda path: path.stat().st_mtime):
        newest[path.stem.removeprefix("isa_")] = path
    folder = tmp_path_factory.mktemp("objects")
    for isa in set(ISAS) - set(newest):
        newest[isa] = folder / f"isa_{isa}.o"
        flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", ISA_FLAG]
        compile_object(CSRC / "cpu" / f"isa_{isa}.cpp", newest[isa], *flags, f"-I{CSRC}")
    assert sorted(newest) == sorted(ISAS)
    return newest


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def weak_symbols(path):
    """Symbols that a linker may take from any of several files: weak functions and objects, unique ones."""
    lines = output_of("nm", "--demangle", "--defined-only", path).splitlines()
    found = [line.split(maxsplit=2) for line in lines]
    return [name for _, kind, name in found if kind in "WVu" and not name.startswith("DW.ref.")]


def vector_registers(path):
    """The kinds of wide registers that an object file's instructions name: {"ymm", "zmm"}."""
    return set(re.findall(r"%([yz]mm)\d", output_of("objdump", "-d", "--no-show-raw-insn", path)))


@pytest.mark.parametrize("isa", ISAS)
def test_no_weak_symbol_stands_outside_its_instruction_set(objects, isa):
    # shared by two files, such a symbol is taken from either: an old processor then meets AVX-512
    symbols = weak_symbols(objects[isa])
    assert [name for name in symbols if f"rnnfast::{isa}::" not in name] == []
    assert [name for other in ISAS if other != isa for name in symbols if f"rnnfast::{other}::" in name] == []


def test_only_the_objects_of_wide_instruction_sets_hold_wide_registers(objects):
    widest = {isa: {"ymm", "zmm"} for isa in ISAS} | {"generic": set(), "avx2": {"ymm"}}
    for isa, path in objects.items():
        found = vector_registers(path)
        assert found <= widest[isa]
        assert found or isa == "generic"


def tiles_through_memory(path):
    """Those of an object file's tiles of products whose vector registers go to the stack, and how often."""
    found = {}
    name = ""
    for line in output_of("objdump", "-d", "--demangle", "--no-show-raw-insn", path).splitlines():
        if line.endswith(">:"):
            name = line
        elif "multiply_tile" in name and re.search(r"mm\d+,.*\(%r[sb]p\)|\(%r[sb]p\),.*mm\d", line):
            found[name] = found.get(name, 0) + 1
    return found


@pytest.mark.skipif("avx2" not in ISAS, reason="needs AVX2")
def test_no_tile_of_16_registers_keeps_a_sum_in_memory(objects):
    # a sum that is stored and loaded again at every step of k takes longer than the step's multiply-adds
    if ROOT / "build" not in objects["avx2"].parents:
        pytest.skip("the extension was not built here: its optimized objects are elsewhere")
    assert tiles_through_memory(objects["avx2"]) == {}


@pytest.mark.skipif("avx2" not in ISAS, reason="needs AVX2")
def test_a_tile_with_more_sums_than_registers_is_found(tmp_path):
    source = tmp_path / "tile.cpp"
    source.write_text("""
typedef float V __attribute__((vector_size(32)));
__attribute__((target("avx2,fma"))) void multiply_tile(const float* a, const V* b, V* c, long K) {
  V sum[20] = {};
  for (long k = 0; k < K; ++k)
#pragma GCC unroll 20
    for (int i = 0; i < 20; ++i) sum[i] += a[k] * b[k * 20 + i];
#pragma GCC unroll 20
  for (int i = 0; i < 20; ++i) c[i] = sum[i];
}
""")
    compile_object(source, tmp_path / "tile.o", "-O3")
    (times,) = tiles_through_memory(tmp_path / "tile.o").values()
    assert times > 2


def test_a_weak_symbol_outside_a_namespace_is_found(tmp_path):
    source = tmp_path / "weak.cpp"
    source.write_text("template <class V> V twice(V v) { return v + v; }\ntemplate float twice(float);\n")
    compile_object(source, tmp_path / "weak.o")
    assert weak_symbols(tmp_path / "weak.o") == ["float twice<float>(float)"]


def test_the_package_without_its_extension_does_not_import_and_says_how_to_build(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "rnnfast", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    # an editable install has the extension in its own folder, and rnnfast_autoload, for which torch asks
    code = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
sys.path.insert(0, sys.argv[1])
import rnnfast
print(rnnfast.__file__)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    )
    assert ran.returncode != 0
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError:")
    assert "pip install --no-build-isolation" in last
