"""Native programs and libraries in which this host stands for a GPU: its kernels, compiled once for all, and
tests/native/device_check."""

import functools
import os
import subprocess

from helpers import COMPILER, EMULATION, ROOT, compile_all

FOLDER = ROOT / "tests" / "native" / "device_check"
CUDA = ROOT / "csrc" / "cuda"
FLAGS = ["-O2", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


@functools.cache
def emulated_kernels(temporary):
    """The objects of all kernels, in a folder of this session."""
    sources = [path for path in sorted(CUDA.glob("*.cu")) if path.stem != "device"]
    return compile_all(sources, temporary / "emulated_kernels", *FLAGS, *EMULATION)


@functools.cache
def host_objects(temporary):
    """What is the same for every device, in a folder of this session."""
    sources = [*sorted(FOLDER.glob("*.cpp")), CUDA / "plan.cpp"]
    return compile_all(sources, temporary / "device_check_host", *FLAGS, f"-I{FOLDER}", f"-I{ROOT / 'csrc'}")


@functools.cache
def build_emulated(temporary):
    """The program, with this host as its device, in a folder of this session."""
    folder, includes = temporary / "device_check_emulated", [f"-I{FOLDER}", f"-I{FOLDER / 'emulated'}"]
    sources = [*sorted(FOLDER.glob("*.cu")), FOLDER / "emulated" / "access.cpp"]
    objects = compile_all(sources, folder, *FLAGS, *EMULATION, *includes)
    objects += [path for path in emulated_kernels(temporary) if path.stem.startswith("resident")]
    program = folder / "device_check"
    subprocess.run([*COMPILER, *objects, *host_objects(temporary), "-o", str(program)], check=True)
    return program


def run(program, *words, faults="", timeout=300):
    """Exit status, lines of output, and the error."""
    environment = {**os.environ, "RNNFAST_STUB": faults}
    ran = subprocess.run([program, *words], capture_output=True, text=True, timeout=timeout, env=environment)
    return ran.returncode, ran.stdout.splitlines(), ran.stderr
