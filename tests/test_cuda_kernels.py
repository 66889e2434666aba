"""What stands under the CUDA ops, alone: the emulation that replaces the primitives on a host, what nvcc says
of every kernel, and the program of all of them that a GPU is tested with."""

import json
import os
import re
import shutil
import subprocess

import compiling
import device_check
import pytest
from helpers import COMPILER, EMULATION, ROOT

from benchmarks import cycles, sass
from rnnfast import _C


def test_the_emulation_finds_what_would_hang_or_fault(tmp_path):
    source, program = ROOT / "tests" / "native" / "emulation_faults.cpp", tmp_path / "faults"
    subprocess.run([*COMPILER, "-std=c++20", *EMULATION, str(source), "-o", str(program)], check=True)

    def run(fault):
        ran = subprocess.run([program, fault], capture_output=True, text=True, timeout=60)
        return ran.returncode, ran.stdout + ran.stderr

    assert run("none") == (0, "ran\n")
    faults = {
        "leaves": "is deadlocked",
        "misaligned": "a load of 16 bytes at 0x",
        "hurries": "of 192 threads 189 wait for the kernel before",
        "early": "a block has left before its copies came",
    }
    for fault, said in faults.items():
        code, text = run(fault)
        assert code < 0, fault
        assert said in text


# What ptxas may give the kernels of a file: no stack, no spill, and so many registers. Of a stepwise kernel,
# or one of a single step, three blocks of 128 threads, or two of 256, fit a multiprocessor's 65,536; a
# resident block has 512 threads, 384 of a layer's team of several, or 256 where sums are exchanged.
REGISTERS = {
    "stepwise_f32": 118,
    "stepwise_f64": 136,
    "stepwise_bf16": 128,
    "stepwise_f16": 128,
    "single_f32": 128,
    "single_f64": 168,
    "single_bf16": 128,
    "single_f16": 128,
    "resident_bf16": 168,
    "resident_f16": 168,
    "resident_tf32": 168,
    "resident_scatter_bf16": 249,
    "resident_scatter_f16": 249,
    "resident_scatter_tf32": 238,
    "resident_deep_bf16": 96,
    "resident_deep_f16": 96,
    "resident_deep_tf32": 96,
    "device": 8,
    "primitives": 24,
    "micro": 50,
    "memory": 32,
    "access": 8,
}
OF_LARGE_TILES = 128  # registers, of a stepwise kernel for many rows: two blocks of 256 threads
CELLS = len(_C.cells())
# the cells forward and backward and two projections, in halves and as TF32 once more for many rows, and three
# of the deep transition; the small tiles with floats and again with TF32; of a single step the cells forward
# (and with TF32), and twice backward; the cells, two ways, in one block of two widths, in a cluster and on a
# grid, each for plain walks and for all others; backward where a cluster exchanges sums, with blocks of two
# widths (of an LSTM in TF32 one); the deep transition, two ways, in one block and in a cluster
KERNELS = {
    "stepwise": 2 * (2 * CELLS + 2) + 3,
    "stepwise_f64": 2 * CELLS + 5,
    "stepwise_f32": 3 * (2 * CELLS + 2) + 6,
    "single": 3 * CELLS,
    "single_f32": 4 * CELLS,
    "resident": 4 * 2 * 2 * CELLS,
    **{f"resident_scatter_{element}": 2 * 2 * CELLS for element in ("bf16", "f16")},
    "resident_scatter_tf32": 2 * (2 * CELLS - 1),
    **{f"resident_deep_{element}": 4 for element in ("bf16", "f16", "tf32")},
    "device": 1,
    # of tests/native/device_check
    "primitives": 12,
    "micro": 8,
    "memory": 2,
    "access": 1,
}


def no_nvdisasm():
    """Why not; nothing where it is."""
    try:
        sass.nvdisasm()
    except sass.Error as error:
        return str(error)


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
needs_nvdisasm = pytest.mark.skipif(no_nvdisasm() is not None, reason=str(no_nvdisasm()))


@pytest.fixture(scope="session")
def kept(programs):
    """Where the compiler leaves the machine code whose cycles are reckoned."""
    return programs / "kept"


@pytest.fixture(scope="session")
def compiled(programs, kept):
    """Every file of kernels, by its name, for Ampere and Hopper: the object, and what ptxas said."""
    own = device_check.FOLDER
    files = [*(ROOT / "csrc" / "cuda").glob("*.cu"), *own.glob("*.cu"), *(own / "gpu").glob("*.cu")]
    command = [
        "nvcc",
        "-std=c++20",
        "-O3",
        "-Xptxas=-v",
        "-Xfatbin=-compress-all",  # line information, too
        f"-I{ROOT / 'csrc'}",
        f"-I{own}",
        f"-I{own / 'gpu'}",
    ]
    command += [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    kept.mkdir(parents=True, exist_ok=True)
    keep = dict.fromkeys(cycles.SOURCES, ["-lineinfo", "--keep", f"--keep-dir={kept}"])
    commands = [(f"{path.stem}.o", [*command, *keep.get(path, []), "-c", path]) for path in files]
    made = compiling.make_all(programs, commands)
    assert compiling.files(made)
    return {one.file.stem: one for one in made}


@needs_nvcc
def test_every_kernel_compiles_without_stack_or_spills(compiled):
    assert set(compiled) == set(REGISTERS)
    for name, (_, _, report) in compiled.items():
        entry = r"Compiling entry function '(\w+)'.*?Used (\d+) registers"
        used = [(kernel, int(n)) for kernel, n in re.findall(entry, report, re.DOTALL)]
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", report)
        kernels = KERNELS.get(name) or KERNELS[name.split("_")[0]]
        assert len(used) == len(frames) == 2 * kernels, name
        assert set(frames) <= {("0", "0", "0")}, name
        for kernel, n in used:
            assert n <= (OF_LARGE_TILES if "run_block_tiles" in kernel else REGISTERS[name]), kernel


# Cycles that a step of a resident kernel takes one warp (of a deep transition: a product; of the large tiles
# of a launch a step: 64 bytes of each row), reckoned by benchmarks.cycles with nvcc 13.0. A change that makes
# them fewer lowers the number here.
CYCLES = {
    "lstm 128 forward": 625,
    "lstm 256 forward": 1468,
    "lstm 512 forward": 1491,
    "lstm 1024 forward": 2126,
    "lstm 512 training": 1851,
    "gru 512 forward": 1474,
    "rnn_tanh 512 forward": 1413,
    "lstm 128 backward": 1037,
    "lstm 256 backward": 1246,
    "lstm 512 backward": 1276,
    "lstm 1024 backward": 4167,
    "gru 512 backward": 1225,
    "rnn_tanh 512 backward": 944,
    "lstm 64 forward tf32": 612,
    "lstm 256 forward tf32": 1551,
    "lstm 768 forward tf32": 2714,
    "lstm 64 backward tf32": 1050,
    "lstm 256 backward tf32": 1242,
    "lstm 768 backward tf32": 5148,
    "lstm 512 backward tf32": 1809,
    "deep 128 training": 984,
    "deep 256 training": 1481,
    "deep 512 training": 1637,
    "deep 128 backward": 992,
    "deep 256 backward": 1455,
    "deep 512 backward": 1611,
    "deep 256 training tf32": 1622,
    "deep 256 backward tf32": 1612,
    "lstm tiles forward": 514,
    "gru tiles forward": 416,
    "rnn_tanh tiles forward": 514,
    "lstm tiles backward": 576,
}


@needs_nvcc
@needs_nvdisasm
def test_a_step_takes_no_more_cycles_than_it_did(compiled, kept, tmp_path):
    cubins = [str(kept / f"{source.stem}.compute_90.cubin") for source in cycles.SOURCES]
    assert cycles.main(["--cubin", *cubins, "--json", str(tmp_path / "cycles.json")]) == 0
    kernels = json.loads((tmp_path / "cycles.json").read_text())["kernels"]
    found = {kernel["case"]: kernel["cycles"] for kernel in kernels}
    assert set(found) == set(CYCLES)
    # another release of nvcc may order a few instructions otherwise
    worse = {case: (n, CYCLES[case]) for case, n in found.items() if n > 1.03 * CYCLES[case]}
    assert not worse, "cycles, and how many they may be"


@needs_nvcc
@needs_nvdisasm
def test_kernels_are_compiled_and_disassembled_where_no_cubin_is_given(tmp_path):
    cubin = sass.compile_cubin(ROOT / "csrc" / "cuda" / "device.cu", tmp_path / "device.cubin")
    (function,) = sass.read(sass.disassemble(cubin)).values()
    assert any(sass.sources(one) for one in function.code)


@pytest.fixture(scope="session")
def program(compiled, programs):
    """device_check for a GPU, as it is carried to a machine that has one."""
    of_ops = ("stepwise", "single")
    kernels = [made.file for name, made in compiled.items() if not name.startswith(of_ops)]
    static = ["-cudart", "static", "-Xcompiler=-static-libstdc++,-static-libgcc", "-Xlinker=-s"]
    objects = [*kernels, *device_check.host_objects(programs)]
    return compiling.files([compiling.make(programs, "device_check", ["nvcc", *static, *objects])])[0]


@needs_nvcc
def test_the_program_for_a_gpu_is_one_small_file_that_needs_no_cuda(program):
    assert program.stat().st_size < 30e6
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"libcud|libstdc\+\+|libgcc|not found", needed), needed


@needs_nvcc
def test_the_program_for_a_gpu_lists_what_the_emulated_one_does(program, programs):
    emulated = device_check.build_emulated(programs)
    assert device_check.run(program, "list") == device_check.run(emulated, "list")


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a device here")
@needs_nvcc
def test_the_program_for_a_gpu_says_where_there_is_none(program):
    for words in ["device"], ["run", "primitive-shuffle"]:
        code, lines, _ = device_check.run(program, *words)
        said = json.loads(lines[0])
        assert (code, len(lines), said["kind"]) == (77, 1, "device")
        assert said["said"].startswith("no device: ")
