"""Native programs and libraries in which this host stands for a GPU: its kernels, and the program of
tests/native/device_check. `programs` is the fixture."""

import os
import subprocess

import compiling
from helpers import COMPILER, EMULATION, ROOT

FOLDER = ROOT / "tests" / "native" / "device_check"
CUDA = ROOT / "csrc" / "cuda"
FLAGS = ["-O2", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def objects_of(programs, sources, *flags):
    """Of C++, or of CUDA as C++."""
    command = [*COMPILER, "-std=c++20", *FLAGS, *flags, "-x", "c++"]
    return compiling.files(compiling.compile_all(programs, sources, *command))


def emulated_kernels(programs):
    """The objects of all kernels."""
    sources = [path for path in sorted(CUDA.glob("*.cu")) if path.stem != "device"]
    return objects_of(programs, sources, *EMULATION)


def host_objects(programs):
    """What is the same for every device."""
    sources = [*sorted(FOLDER.glob("*.cpp")), CUDA / "plan.cpp"]
    return objects_of(programs, sources, f"-I{FOLDER}", f"-I{ROOT / 'csrc'}")


def build_emulated(programs):
    """The program, with this host as its device."""
    sources = [*sorted(FOLDER.glob("*.cu")), FOLDER / "emulated" / "access.cpp"]
    objects = objects_of(programs, sources, *EMULATION, f"-I{FOLDER}", f"-I{FOLDER / 'emulated'}")
    objects += [path for path in emulated_kernels(programs) if path.stem.startswith("resident")]
    made = compiling.make(programs, "device_check", [*COMPILER, *objects, *host_objects(programs)])
    return compiling.files([made])[0]


def run(program, *words, faults="", timeout=300):
    """Exit status, lines of output, and the error."""
    environment = {**os.environ, "RNNFAST_STUB": faults}
    ran = subprocess.run([program, *words], capture_output=True, text=True, timeout=timeout, env=environment)
    return ran.returncode, ran.stdout.splitlines(), ran.stderr
