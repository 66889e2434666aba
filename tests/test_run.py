"""`python -m rnnfast`: a program runs as without it, with rnnfast enabled, and so do its processes."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipapp

import pytest

from tests.helpers import ROOT

PROGRAM = """
import sys, torch
torch.manual_seed(0)
model, x = torch.nn.LSTM(4, 6), torch.randn(5, 3, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    loss = model(x)[0].square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"{loss.item():.4f}")
print(__name__, sys.argv, sys.path[0], __file__, [name for name in globals() if not name.startswith("__")])
"""
COUNTS = """
import rnnfast
print(rnnfast.info.counts().get("aten::lstm.input"))
"""


def run(*command, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.fixture
def program(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/train.py").write_text(PROGRAM)
    (tmp_path / "inner/counted.py").write_text(PROGRAM + COUNTS)
    return tmp_path


@pytest.mark.parametrize("name", [["inner/train.py"], ["-m", "inner.train"]], ids=["script", "module"])
def test_a_program_prints_what_it_prints_without(program, name):
    plain = run(*name, "--lr", "0.1", cwd=program)
    ours = run("-m", "rnnfast", *name, "--lr", "0.1", cwd=program)
    assert plain.returncode == ours.returncode == 0, ours.stderr
    assert ours.stdout == plain.stdout


@pytest.mark.parametrize("name", [["inner/counted.py"], ["-m", "inner.counted"]], ids=["script", "module"])
def test_its_layers_are_taken(program, name):
    ours = run("-m", "rnnfast", *name, cwd=program)
    assert ours.stdout.splitlines()[-1] == "{'taken': 3}", ours.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has no -P")
def test_the_path_of_imports_stays_safe_where_that_is_asked(program):
    plain = run("-P", "inner/train.py", cwd=program)
    ours = run("-P", "-m", "rnnfast", "inner/train.py", cwd=program)
    assert plain.returncode == ours.returncode == 0, ours.stderr
    assert ours.stdout == plain.stdout


def test_folders_and_archives_run(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app/helper.py").write_text("x = 42\n")
    program = "import helper, sys; print(helper.x, __name__, __file__, sys.argv, sys.path[0])\n"
    (tmp_path / "app/__main__.py").write_text(program)
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz")
    for name in ("app", "app.pyz"):
        plain, ours = run(name, "1", cwd=tmp_path), run("-m", "rnnfast", name, "1", cwd=tmp_path)
        assert plain.returncode == ours.returncode == 0, ours.stderr
        assert ours.stdout == plain.stdout and "42 __main__" in ours.stdout


def test_a_profiler_sees_the_program(program):
    plain = run("-m", "cProfile", "-o", "plain", "inner/train.py", cwd=program)
    for command in (
        ["-m", "rnnfast", "-m", "cProfile", "-o", "ours", "inner/train.py"],
        ["-m", "cProfile", "-o", "ours", "-m", "rnnfast", "inner/train.py"],
    ):
        ours = run(*command, cwd=program)
        assert ours.returncode == 0, ours.stderr
        assert ours.stdout.splitlines()[:3] == plain.stdout.splitlines()[:3]
        assert (program / "ours").stat().st_size > 0


def test_a_debugger_stops_in_the_program(program):
    (program / "inner/train.py").write_text("x = 1\nbreakpoint()\ny = 2\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def debugged(*how):
        command, typed = [sys.executable, *how, "inner/train.py"], "p x + 41\nc\n"
        return subprocess.run(
            command, input=typed, capture_output=True, text=True, cwd=program, env=environment
        )

    found = debugged("-m", "rnnfast")
    assert found.returncode == 0 and "42" in found.stdout, found.stderr
    # at line 3, and from Python 3.13 on at line 2
    assert found.stdout == debugged().stdout


ENDS = {
    "sys.exit(3)": 3,
    "sys.exit('a sentence')": 1,
    "raise ValueError('wrong')": 1,
    "os.kill(os.getpid(), 15)": -15,
    "def f(): raise KeyError(1)\nf()": 1,
    "import threading; threading.Thread(target=lambda: print(__name__, __file__)).start()": 0,
    "1 +": 1,
}


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_without(tmp_path, end):
    (tmp_path / "program.py").write_text(f"import os, sys\nprint('begun')\n{end}\n")
    plain, ours = run("program.py", cwd=tmp_path), run("-m", "rnnfast", "program.py", cwd=tmp_path)
    assert plain.returncode == ours.returncode == ENDS[end]
    assert ours.stdout == plain.stdout and ours.stderr == plain.stderr


def test_what_cannot_be_run_is_said(tmp_path):
    for name in ("missing.py", "."):
        plain, ours = run(name, cwd=tmp_path), run("-m", "rnnfast", name, cwd=tmp_path)
        assert ours.returncode != 0 and "Traceback" not in ours.stderr
        if name == "missing.py":
            assert ours.returncode in (1, plain.returncode) and "No such file or directory" in ours.stderr
    missing = run("-m", "rnnfast", "-m", "no_such_module", cwd=tmp_path)
    assert missing.returncode == 1 and "No module named no_such_module" in missing.stderr
    for arguments, code in ((["-h"], 0), ([], 2), (["-m"], 2)):
        said = run("-m", "rnnfast", *arguments, cwd=tmp_path)
        assert said.returncode == code and "python -m rnnfast SCRIPT" in said.stdout + said.stderr


POOL = """
import multiprocessing, sys, torch

def work(seed):
    torch.manual_seed(seed)
    y = torch.nn.GRU(4, 6)(torch.ones(2, 1, 4))[0].sum().item()
    rnnfast = sys.modules.get("rnnfast")
    return round(y, 4), rnnfast is not None and bool(rnnfast.info.counts())

class Thing:
    pass

if __name__ == "__main__":
    import pickle
    assert type(pickle.loads(pickle.dumps(Thing()))) is Thing
    torch.nn.GRU(4, 6)(torch.ones(2, 1, 4))
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.map(work, range(2)))
"""


def test_processes_that_it_starts_are_enabled_too(tmp_path):
    (tmp_path / "program.py").write_text(POOL)
    plain, ours = run("program.py", cwd=tmp_path), run("-m", "rnnfast", "program.py", cwd=tmp_path)
    assert plain.returncode == ours.returncode == 0, ours.stderr
    assert "True" not in plain.stdout and "False" not in ours.stdout
    assert re.sub("True", "False", ours.stdout) == plain.stdout


def test_torch_knows_whom_to_ask_as_it_is_imported():
    (entry,) = [e for e in importlib.metadata.entry_points(group="torch.backends") if e.name == "rnnfast"]
    assert entry.value == "rnnfast_autoload:start"


IMPORTS = "import sys, torch; r = sys.modules.get('rnnfast'); print(r and r._enable._aten.is_active())"


@pytest.mark.parametrize(
    "value, code, said",
    [
        ("1", IMPORTS, "True"),
        ("1", "import rnnfast; " + IMPORTS, "True"),
        ("0", "import rnnfast; " + IMPORTS, "False"),
        ("", "import rnnfast; " + IMPORTS, "False"),
        ("0", IMPORTS, "None"),
        ("", IMPORTS, "None"),
        (None, IMPORTS, "None"),
    ],
)
def test_the_environment_enables(tmp_path, value, code, said):
    environment = {} if value is None else {"RNNFAST_ENABLE": value}
    assert run("-c", code, cwd=tmp_path, **environment).stdout.strip() == said


def test_another_value_in_the_environment_is_named(tmp_path):
    found = run("-W", "default", "-c", "import rnnfast", cwd=tmp_path, RNNFAST_ENABLE="on")
    assert found.returncode == 0 and "RNNFAST_ENABLE is 'on', expected 1 or 0" in found.stderr


def test_torch_is_imported_where_rnnfast_does_not_load(tmp_path):
    (tmp_path / "rnnfast").mkdir()
    (tmp_path / "rnnfast/__init__.py").write_text("raise ImportError('built against another torch')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "RNNFAST_ENABLE": "1"}
    command = [sys.executable, "-W", "default", "-c", "import torch; print(torch.ones(2).sum())"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert found.stdout == "tensor(2.)\n"
    assert "RNNFAST_ENABLE is set, but rnnfast does not load: built against another torch" in found.stderr


def test_what_was_built_is_told_without_a_warning(tmp_path):
    done = run("-W", "error::RuntimeWarning", "-m", "rnnfast.info", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("rnnfast"), done.stderr
