"""Builds rnnfast._C, the C++ extension. Everything that is not the extension stands in pyproject.toml.

The build needs the torch that it will run beside, so it is used with `pip install --no-build-isolation .`.
What is missing is said in one sentence before anything is compiled.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 11)
OLDEST_SETUPTOOLS = (77, 0)  # reads the `license` of pyproject.toml
X86 = platform.machine().lower() in ("x86_64", "amd64")
ARM = platform.machine().lower() in ("aarch64", "arm64")

SOURCES = [
    "csrc/ops/schemas.cpp",
    "csrc/ops/autograd.cpp",
    "csrc/ops/checks.cpp",
    "csrc/ops/module.cpp",
    "csrc/ops/launch.cpp",
    "csrc/ops/memory.cpp",
    "csrc/ops/rows.cpp",
    "csrc/ops/gradients.cpp",
    "csrc/ops/layer.cpp",
    "csrc/ops/cpu_layer.cpp",
    "csrc/ops/cpu_tensors.cpp",
    "csrc/ops/cpu_deep.cpp",
    "csrc/ops/layers_call.cpp",
    "csrc/ops/direct.cpp",
    "csrc/ops/aten.cpp",
    "csrc/ops/aten_calls.cpp",
    "csrc/cpu/plan.cpp",
    "csrc/cuda/plan.cpp",
    "csrc/cpu/profile.cpp",
    "csrc/cpu/team.cpp",
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/isa_generic.cpp",
]
CUDA_SOURCES = [
    "csrc/ops/cuda_layer.cpp",
    "csrc/ops/cuda_deep.cpp",
    "csrc/cuda/stepwise_f32.cu",
    "csrc/cuda/stepwise_f64.cu",
    "csrc/cuda/stepwise_bf16.cu",
    "csrc/cuda/stepwise_f16.cu",
    "csrc/cuda/single_f32.cu",
    "csrc/cuda/single_f64.cu",
    "csrc/cuda/single_bf16.cu",
    "csrc/cuda/single_f16.cu",
    "csrc/cuda/resident_bf16.cu",
    "csrc/cuda/resident_f16.cu",
    "csrc/cuda/resident_tf32.cu",
    "csrc/cuda/resident_scatter_bf16.cu",
    "csrc/cuda/resident_scatter_f16.cu",
    "csrc/cuda/resident_scatter_tf32.cu",
    "csrc/cuda/resident_deep_bf16.cu",
    "csrc/cuda/resident_deep_f16.cu",
    "csrc/cuda/resident_deep_tf32.cu",
    "csrc/cuda/device.cu",
]
# Says whether CUDA kernels are built. As an argument of every compiler command that would make all objects
# old where it changes; as a header only those that include it.
BUILD_HEADER = ROOT / "build" / "include" / "rnnfast_build.h"
# Unless TORCH_CUDA_ARCH_LIST says otherwise: Ampere, Hopper, and PTX for what comes after them.
CUDA_ARCHITECTURES = "8.0;9.0+PTX"
if ARM:
    SOURCES += ["csrc/cpu/isa_neon.cpp", "csrc/cpu/isa_neon_bf16.cpp"]
if X86:
    SOURCES += [f"csrc/cpu/isa_{name}.cpp" for name in ("avx2", "avx512", "avx512_bf16", "amx_bf16")]

COMPILE_ARGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-falign-functions=64",  # or how fast a loop is would change with the size of what stands before it
    "-ffp-contract=off",  # only the packs' explicit fma: tiles of 6 rows and of 1 row then round alike
    "-Wall",
    "-Werror=psabi",  # a vector passed by another convention gives wrong numbers, and this is the only sign
]
# Of g++; clang ends at the second.
GCC_ARGS = [
    "-fschedule-insns",  # the cells of two rows, which stand one after the other, are computed side by side
    "-fsched-pressure",  # but the sums of a tile stay in registers
]

NVCC_ARGS = ["-std=c++20", "-O3", "-Xcompiler=-fvisibility=hidden"]


def stop(sentence):
    sys.exit(f"rnnfast: {sentence}")


def release(version):
    """The first two numbers of a version: "2.13.0+cpu" -> (2, 13)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def check_python():
    if sys.version_info < OLDEST_PYTHON:
        found = platform.python_version()
        stop(f"Python {found} is too old; run this with Python 3.10 or newer.")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        stop(
            "Python.h is missing, so nothing can be compiled for this Python; install its headers "
            "(Debian/Ubuntu: sudo apt install python3-dev) and run the same command again."
        )


def check_system():
    if sys.platform == "win32":
        stop(
            "the kernels need g++ or clang, which torch for Windows does not build extensions with; "
            "run this in Linux (Windows has it as WSL)."
        )


def cxx():
    """The C++ compiler's command, as torch chooses it."""
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def understands(arguments):
    """Whether the C++ compiler does."""
    asked = [*cxx(), *arguments, "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(asked, input="", capture_output=True, text=True).returncode == 0


def check_compiler():
    compiler = cxx()
    if shutil.which(compiler[0]) is None:
        stop(
            f"no C++ compiler found (looked for {compiler[0]!r}); install one "
            "(Debian/Ubuntu: sudo apt install g++) or set CXX to yours, and run the same command again."
        )


def check_torch():
    advice = "install torch 2.11 or newer first, then run: pip install --no-build-isolation ."
    try:
        import torch
    except ImportError as error:
        stop(f"the build cannot import torch ({error}); {advice}")
    if release(torch.__version__) < OLDEST_TORCH:
        stop(f"torch {torch.__version__} is too old; {advice}")


def check_setuptools():
    advice = "run: pip install --upgrade setuptools, and then the same command again."
    try:
        import setuptools
    except ImportError as error:
        stop(f"the build cannot import setuptools ({error}); {advice}")
    if release(setuptools.__version__) < OLDEST_SETUPTOOLS:
        stop(f"setuptools {setuptools.__version__} is too old; {advice}")


def find_cuda_toolkit():
    """(folder, version) of the CUDA toolkit in CUDA_HOME, on PATH or in its usual place, or None."""
    on_path = shutil.which("nvcc")
    folders = [
        os.environ.get("CUDA_HOME"),
        on_path and Path(on_path).resolve().parent.parent,
        "/usr/local/cuda",
    ]
    for folder in filter(None, folders):
        nvcc = Path(folder, "bin", "nvcc")
        if nvcc.exists() and Path(folder, "include", "cuda_runtime.h").exists():
            said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
            if found := re.search(r"release (\d+)\.(\d+)", said):
                return str(folder), (int(found[1]), int(found[2]))
    return None


def cuda_toolkit():
    """The toolkit to compile the CUDA kernels with, or None.

    RNNFAST_CUDA=0 leaves them out, RNNFAST_CUDA=1 compiles them also beside a CPU build of torch; otherwise
    they are compiled where torch has CUDA and nvcc of the same major version is there.
    """
    asked = os.environ.get("RNNFAST_CUDA", "")
    if asked not in ("", "0", "1"):
        stop(f"RNNFAST_CUDA is {asked!r}, expected 0, 1 or nothing.")
    if asked == "0":
        return None
    import torch

    theirs, found = torch.version.cuda, find_cuda_toolkit()
    advice = "set CUDA_HOME to the CUDA toolkit that torch was built with"
    if found is None:
        lacking = "no nvcc was found in CUDA_HOME, on PATH or in /usr/local/cuda"
    elif theirs and release(theirs)[0] != found[1][0]:
        lacking = f"{found[0]} has CUDA {'.'.join(map(str, found[1]))} and torch has {theirs}"
    elif theirs or asked:
        return found
    else:
        print(
            "rnnfast: this torch has no CUDA, so the CUDA kernels are left out (RNNFAST_CUDA=1 compiles them)"
        )
        return None
    if asked:
        stop(f"RNNFAST_CUDA=1, but {lacking}; {advice}.")
    if theirs:
        print(f"rnnfast: {lacking}, so the CUDA kernels are left out; to have them, {advice}")
    return None


def find_ninja():
    """True if ninja can be run; the one of the `ninja` package is put on PATH if there is no other."""
    if shutil.which("ninja") is None:
        try:
            import ninja
        except ImportError:
            return False
        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", os.defpath)])
    return shutil.which("ninja") is not None


def commands(use_ninja, toolkit=None):
    """setuptools' commands, changed: what is built says, in its version and in a record, for which torch."""
    import torch
    from setuptools.command.egg_info import egg_info
    from torch.utils.cpp_extension import BuildExtension

    cuda = "{}.{}".format(*toolkit[1]) if toolkit else None
    tag = "+torch{}.{}".format(*release(torch.__version__)) + (f".cu{cuda.replace('.', '')}" if cuda else "")

    class Tag(egg_info):
        """0.1.0+torch2.13, with CUDA kernels 0.1.0+torch2.13.cu130; sources, for any torch, are 0.1.0."""

        @property
        def vtags(self):
            return super().vtags if "sdist" in self.distribution.commands else tag

    class Build(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # ninja knows which objects are old; setuptools would keep those that another torch has compiled.
            if self.use_ninja:
                self.force = True
            # `pip install -e` would compile in a new temporary folder; this reuses the last build's objects.
            if self.inplace:
                of = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
                self.build_temp = str(ROOT / "build" / f"temp.{of}")

        def run(self):
            write_build_header(toolkit)
            super().run()
            # what rnnfast/_load.py compares with the torch that is there
            record = Path(self.get_ext_fullpath("rnnfast._C")).with_suffix(".json")
            record.write_text(json.dumps({"torch": torch.__version__, "cuda": cuda}) + "\n")

    return {"build_ext": Build.with_options(use_ninja=use_ninja), "egg_info": Tag}


def write_build_header(toolkit):
    """RNNFAST_CUDA is there where CUDA kernels are: the version of their toolkit, 1300 for 13.0."""
    text = "#define RNNFAST_CUDA {}{:02}\n".format(*toolkit[1]) if toolkit else "// without CUDA kernels\n"
    if not BUILD_HEADER.exists() or BUILD_HEADER.read_text() != text:
        BUILD_HEADER.parent.mkdir(parents=True, exist_ok=True)
        BUILD_HEADER.write_text(text)


def extension(toolkit=None):
    """With the toolkit's folder and version the CUDA kernels are part of it."""
    from torch.utils import cpp_extension

    sources, cuda = SOURCES, {}
    arguments = COMPILE_ARGS + (GCC_ARGS if understands(GCC_ARGS) else [])
    macros = [("RNNFAST_X86", "1")] * X86 + [("RNNFAST_ARM", "1")] * ARM
    if toolkit:
        folder = toolkit[0]
        cpp_extension.CUDA_HOME = folder  # the environment is read only when torch is imported
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
        sources = SOURCES + CUDA_SOURCES
        # the static runtime: import needs no CUDA library and no driver
        cuda = {
            "library_dirs": [str(Path(folder, lib)) for lib in ("lib64", "lib")],
            "libraries": ["cudart_static", "dl", "rt", "pthread"],
        }
    headers = (path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh"))
    return cpp_extension.CppExtension(
        "rnnfast._C",
        sources,
        include_dirs=[str(ROOT / "csrc"), str(BUILD_HEADER.parent)],
        define_macros=macros,
        depends=["setup.py", str(BUILD_HEADER)] + sorted(str(path.relative_to(ROOT)) for path in headers),
        extra_compile_args={"cxx": arguments, "nvcc": NVCC_ARGS},
        **cuda,
    )


def main():
    check_system()
    check_python()
    check_compiler()
    check_torch()
    check_setuptools()
    os.chdir(ROOT)
    use_ninja = find_ninja()
    if not use_ninja:
        print("rnnfast: ninja not found, the files are compiled one by one; to be faster: pip install ninja")

    from setuptools import setup

    toolkit = cuda_toolkit()
    setup(ext_modules=[extension(toolkit)], cmdclass=commands(use_ninja, toolkit))


if __name__ == "__main__":
    main()
