"""tests/matrix.py without its builds: what it counts, what it leaves out, and the page of its results."""

import json
import sys

import matrix
import pytest

DONE = {
    "python": "3.11.7",
    "torch": "2.11.0+cpu",
    "tests": "all but `native`",
    "date": "2026-01-02",
    "commit": "abc",
}
DONE |= {"passed": 7, "failed": 0, "skipped": 1}
LACKING = {
    "python": "3.9",
    "torch": "2.11.0",
    "tests": "all",
    "date": "2026-01-02",
    "commit": "abc",
    "error": "none",
}


@pytest.fixture
def tested(monkeypatch, tmp_path):
    """The pairs that would have been built and tested; results and page lie in tmp_path."""
    pairs = []

    def test(pair, program, commit, chosen, folder, arguments):
        pairs.append(pair)
        return DONE | {"commit": commit, "tests": chosen[1]}

    monkeypatch.setattr(matrix, "test", test)
    monkeypatch.setattr(matrix, "find_python", lambda version: None if version == "2.99" else "it")
    monkeypatch.setattr(matrix, "RESULTS", tmp_path / "versions.json")
    monkeypatch.setattr(matrix, "DOCS", tmp_path / "versions.md")
    matrix.DOCS.write_text(f"above\n{matrix.BEGIN}old\n{matrix.END}\nbelow\n")
    return pairs


def test_a_pair_that_has_a_result_of_this_commit_is_left_out(tested):
    assert matrix.main(["3.11:2.11.0"]) == 0
    assert matrix.main(["3.11:2.11.0", "3.10:2.13.0", "--without", "native"]) == 0
    assert tested == ["3.11:2.11.0", "3.10:2.13.0"]
    assert matrix.main(["3.11:2.11.0", "--again"]) == 0
    assert tested[2:] == ["3.11:2.11.0"]
    assert set(json.loads(matrix.RESULTS.read_text())) == set(tested)


@pytest.mark.parametrize("changes", [{"failed": 1}, {"error": "no Python 3.9 here"}])
def test_what_failed_is_the_exit_status(tested, changes):
    matrix.RESULTS.write_text(json.dumps({"3.11:2.11.0": DONE | changes}))
    assert matrix.main(["--docs"]) == 1
    assert tested == []


def test_the_page_keeps_what_stands_around_the_table(tested):
    matrix.RESULTS.write_text(json.dumps({"3.11:2.11.0": DONE, "3.9:2.11.0": LACKING}))
    matrix.main(["--docs"])
    text = matrix.DOCS.read_text()
    assert text.startswith(f"above\n{matrix.BEGIN}| Python |") and text.endswith(f"{matrix.END}\nbelow\n")
    rows = [line for line in text.splitlines() if line.startswith("| 3.")]
    assert rows == [
        "| 3.9 | 2.11.0 | – | – | – | none | 2026-01-02 | abc |",
        "| 3.11.7 | 2.11.0+cpu | 7 | 0 | 1 | all but `native` | 2026-01-02 | abc |",
    ]


def test_the_page_says_which_tests_ran():
    assert matrix.choose([], []) == ([], "all")
    assert matrix.choose([], ["nn", "cuda*"]) == (
        ["--ignore-glob=tests/test_nn.py", "--ignore-glob=tests/test_cuda*.py"],
        "all but `nn`, `cuda*`",
    )
    assert matrix.choose(["nn"], []) == (["tests/test_nn.py"], "only `nn`")


def test_a_test_that_breaks_down_counts_as_failed(tmp_path):
    report = tmp_path / "tests.xml"
    suite = '<testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/>'
    report.write_text(f"<testsuites>{suite.format(9, 1, 2, 3)}{suite.format(4, 0, 0, 0)}</testsuites>")
    assert matrix.count(report) == {"passed": 7, "failed": 3, "skipped": 3}


@pytest.mark.parametrize("pair", ["3.11", "3.11-2.11.0", "2.11.0:3.11:1", "3.11:2.11"])
def test_what_is_no_pair_is_one_sentence(pair, capsys):
    with pytest.raises(SystemExit):
        matrix.parse([pair])
    assert capsys.readouterr().err.endswith(f"error: '{pair}' is no pair as 3.11:2.13.0\n")


def test_a_python_that_is_not_there_is_left_out(tested, capsys):
    assert matrix.main(["2.99:2.11.0", "3.11:2.11.0"]) == 0
    assert "2.99:2.11.0: this Python is not here, left out" in capsys.readouterr().out
    assert tested == ["3.11:2.11.0"] == list(json.loads(matrix.RESULTS.read_text()))


def test_a_python_is_asked_for_its_version(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    for name in ("python2.98", "versions/2.98.1/bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(
            f"#!{sys.executable}\nprint({'2.97' if name == 'python2.98' else '2.98'})\n"
        )
        (tmp_path / name).chmod(0o755)
    assert matrix.find_python("2.98") == str(tmp_path / "versions/2.98.1/bin/python")
    assert matrix.find_python("2.97") is None


def test_the_page_is_made_of_the_results():
    table = matrix.table(json.loads(matrix.RESULTS.read_text()))
    assert matrix.BEGIN + table + matrix.END in matrix.DOCS.read_text()
