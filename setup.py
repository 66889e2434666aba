"""Builds rnnfast._C, the C++ extension. Everything that is not the extension stands in pyproject.toml.

The build needs the torch that it will run beside, so it is used with `pip install --no-build-isolation .`.
What is missing is said in one sentence before anything is compiled.
"""

import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 11)
OLDEST_SETUPTOOLS = (77, 0)  # reads the `license` of pyproject.toml
X86 = platform.machine().lower() in ("x86_64", "amd64")

SOURCES = [
    "csrc/ops.cpp",
    "csrc/autograd.cpp",
    "csrc/module.cpp",
    "csrc/launch.cpp",
    "csrc/layer.cpp",
    "csrc/deep.cpp",
    "csrc/direct.cpp",
    "csrc/cpu/plan.cpp",
    "csrc/cpu/team.cpp",
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/isa_generic.cpp",
]
if X86:
    SOURCES += [f"csrc/cpu/isa_{name}.cpp" for name in ("avx2", "avx512", "avx512_bf16")]

COMPILE_ARGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=off",  # only the packs' explicit fma: tiles of 6 rows and of 1 row then round alike
    "-Wall",
    "-Werror=psabi",  # a vector passed by another convention gives wrong numbers, and this is the only sign
]


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


def check_compiler():
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
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


def find_ninja():
    """True if ninja can be run; the one of the `ninja` package is put on PATH if there is no other."""
    if shutil.which("ninja") is None:
        try:
            import ninja
        except ImportError:
            return False
        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", os.defpath)])
    return shutil.which("ninja") is not None


def build_command(use_ninja):
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # ninja knows which objects are old; setuptools would keep those that another torch has compiled.
            if self.use_ninja:
                self.force = True
            # `pip install -e` would compile in a new temporary folder; this reuses the last build's objects.
            if self.inplace:
                tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
                self.build_temp = str(ROOT / "build" / f"temp.{tag}")

    return Build.with_options(use_ninja=use_ninja)


def extension():
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        "rnnfast._C",
        SOURCES,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("RNNFAST_X86", "1")] if X86 else [],
        depends=["setup.py"] + sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")),
        extra_compile_args={"cxx": COMPILE_ARGS},
    )


def main():
    check_python()
    check_compiler()
    check_torch()
    check_setuptools()
    os.chdir(ROOT)
    use_ninja = find_ninja()
    if not use_ninja:
        print("rnnfast: ninja not found, the files are compiled one by one; to be faster: pip install ninja")

    from setuptools import setup

    setup(ext_modules=[extension()], cmdclass={"build_ext": build_command(use_ninja)})


if __name__ == "__main__":
    main()
