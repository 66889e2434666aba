"""tests/compiling.py with a compiler that only notes its calls."""

import subprocess
import sys

import compiling
import pytest
from helpers import ROOT

COMPILER = """
import sys, time
*words, _, file = sys.argv[1:]
open(words[0], "a").write(" ".join(words[1:]) + "\\n")
time.sleep(0.3)
if "wrong" in words:
    sys.exit("no such thing")
open(file, "x").close()
"""
WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import pathlib, compiling
print(compiling.make(pathlib.Path(sys.argv[2]), "program", sys.argv[3:]).file)
"""


@pytest.fixture
def compiler(tmp_path):
    """A command; `calls()`: the words of each call of it."""
    (tmp_path / "compiler.py").write_text(COMPILER)
    return [sys.executable, "-S", tmp_path / "compiler.py", tmp_path / "calls"]


def calls(compiler):
    return compiler[-1].read_text().splitlines()


def test_of_several_processes_one_compiles_and_all_have_the_file(tmp_path, compiler):
    command = [sys.executable, "-S", "-c", WORKER, ROOT / "tests", tmp_path / "programs", *compiler, "a"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    (file,) = {worker.communicate()[0].strip() for worker in workers}
    assert compiling.Path(file).exists()
    assert calls(compiler) == ["a"]


def test_another_compiler_flag_or_source_makes_another_file(tmp_path, compiler):
    sources = [tmp_path / "one.cpp", tmp_path / "two.cpp"]
    made = [compiling.compile_all(tmp_path, sources, *compiler, flag) for flag in ("-O1", "-O2", "-O1")]
    assert made[0] == made[2] != made[1]
    found = compiling.files([*made[0], *made[1]])
    assert [file.name for file in found] == 2 * ["one.o", "two.o"]
    assert len(set(found)) == len(calls(compiler)) == 4


def test_what_could_not_be_made_is_said_each_time_and_tried_once(tmp_path, compiler):
    for _ in range(2):
        made = compiling.make_all(tmp_path, [("a.o", [*compiler, "a"]), ("b.o", [*compiler, "wrong"])])
        assert compiling.wrong(made) == "b.o, exit status 1:\nno such thing\n"
        with pytest.raises(AssertionError, match="no such thing"):
            compiling.files(made)
    assert sorted(calls(compiler)) == ["a", "wrong"]


@pytest.mark.parametrize(("worker", "expected"), [(None, "run/gw0/compiled"), ("gw0", "run/compiled")])
def test_workers_of_a_run_share_a_folder(tmp_path, monkeypatch, worker, expected):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    if worker:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)

    class Factory:
        def getbasetemp(self):
            return tmp_path / "run" / "gw0"

    assert compiling.folder_of(Factory()) == tmp_path / expected
