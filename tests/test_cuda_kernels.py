"""What stands under the CUDA ops, alone: the primitives, the emulation that replaces them on a host, and what
nvcc says of every kernel."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import COMPILER, EMULATION, GPU, ROOT


def test_the_emulation_finds_what_would_hang_or_fault(tmp_path):
    source, program = ROOT / "tests" / "native" / "emulation_faults.cpp", tmp_path / "faults"
    subprocess.run([*COMPILER, "-std=c++20", *EMULATION, str(source), "-o", str(program)], check=True)

    def run(fault):
        ran = subprocess.run([program, fault], capture_output=True, text=True, timeout=60)
        return ran.returncode, ran.stdout + ran.stderr

    assert run("none") == (0, "ran\n")
    for fault, said in ("leaves", "is deadlocked"), ("misaligned", "a load of 16 bytes at 0x"):
        code, text = run(fault)
        assert code < 0, fault
        assert said in text


PRIMITIVES = ROOT / "tests" / "native" / "primitives.cu"


def assert_primitives_are_right(program, *arguments):
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(lines) == 10 - len(arguments)
    assert all(line.endswith(": right") for line in lines)


def test_each_emulated_primitive_does_what_it_says(tmp_path):
    command = [
        *COMPILER,
        "-std=c++20",
        "-O1",
        "-Wno-unknown-pragmas",
        *EMULATION,
        "-x",
        "c++",
        str(PRIMITIVES),
    ]
    subprocess.run([*command, "-o", str(tmp_path / "primitives")], check=True)
    assert_primitives_are_right(tmp_path / "primitives")


@pytest.mark.skipif(not (GPU and shutil.which("nvcc")), reason="no GPU, or no nvcc")
def test_each_primitive_does_what_it_says_on_the_gpu(tmp_path):
    major, minor = torch.cuda.get_device_capability()
    suffix = "a" if (major, minor) == (9, 0) else ""
    architecture = f"-gencode=arch=compute_{major}{minor}{suffix},code=sm_{major}{minor}{suffix}"
    command = ["nvcc", "-std=c++20", "-O3", architecture, f"-I{ROOT / 'csrc'}", str(PRIMITIVES)]
    subprocess.run([*command, "-o", str(tmp_path / "primitives")], check=True)
    assert_primitives_are_right(tmp_path / "primitives", *["no clusters"][: major < 9])


# What ptxas may give the kernels of a file: no stack, no spill, and so many registers. Of a stepwise kernel
# three blocks of 128 threads, or two of 256, fit a multiprocessor's 65,536; a resident block has 512, or 384
# of a team of several.
REGISTERS = {
    "stepwise_f32": 106,
    "stepwise_f64": 136,
    "stepwise_bf16": 128,
    "stepwise_f16": 128,
    "resident_bf16": 168,
    "resident_f16": 168,
    "resident_tf32": 168,
    "device": 8,
    "primitives": 64,
}
# the four cells forward and backward, two projections, three of the deep transition, all of them with floats
# and again with TF32; four cells, two ways, three narrow widths and a wide one, of halves two
KERNELS = {
    "stepwise": 13,
    "stepwise_f32": 26,
    "resident": 24,
    "device": 1,
    "primitives": 10,
}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_every_kernel_compiles_without_stack_or_spills(tmp_path):
    files = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), PRIMITIVES]
    assert {path.stem for path in files} == set(REGISTERS)
    architectures = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"]

    def compile_one(path):
        command = ["nvcc", "-std=c++20", "-O3", *architectures, f"-I{ROOT / 'csrc'}", "-Xptxas=-v"]
        return subprocess.run(
            [*command, "-c", str(path), "-o", str(tmp_path / f"{path.stem}.o")],
            capture_output=True,
            text=True,
        )

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for path, built in zip(files, pool.map(compile_one, files), strict=True):
            assert built.returncode == 0, built.stderr[-4000:]
            used = [int(n) for n in re.findall(r"Used (\d+) registers", built.stderr)]
            frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", built.stderr)
            kernels = KERNELS.get(path.stem) or KERNELS[path.stem.split("_")[0]]
            assert len(used) == len(frames) == 2 * kernels, path.stem
            assert set(frames) <= {("0", "0", "0")}, path.stem
            assert max(used, default=0) <= REGISTERS[path.stem], path.stem
