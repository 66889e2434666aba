"""Builds and tests rnnfast with other versions of Python and torch: make test-matrix MATRIX="3.11:2.11.0"

python tests/matrix.py [PYTHON:TORCH ...] [--without NAME ... | --only NAME ...] [--docs]

Each pair has a folder of its own under build/matrix: a clone, in which the last commit is checked out, and an
environment of 1 to 6 GB, which `make test` fills there. Both stay until `make clean`, so that a later run
compiles only what has changed. What came of a pair is written at once to tests/results/versions.json, and
docs/versions.md is made from it. A pair that has a result of this commit is left out, so that what was
interrupted goes on where it stopped; so is one whose Python is not there.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "tests/results/versions.json", ROOT / "docs/versions.md"
BEGIN, END = "<!-- versions:begin -->\n", "<!-- versions:end -->"
PYTHONS, TORCHES = ("3.10", "3.11", "3.12", "3.13", "3.14"), ("2.11.0", "2.13.0", "2.14.1")
PAIRS = [f"{python}:{torch}" for python, torch in product(PYTHONS, TORCHES)]
COLUMNS = ("Python", "torch", "passed", "failed", "skipped", "tests", "date", "commit")


def git(*arguments, folder=ROOT):
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def find_python(version):
    """A program that is this Python, on PATH or one of pyenv's, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    on_path = shutil.which(f"python{version}")
    for program in filter(None, [on_path, *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]):
        asked = [program, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        said = subprocess.run(asked, capture_output=True, text=True)
        if said.stdout.strip() == version:
            return str(program)
    return None


def check_out(folder, commit):
    """Files that are the same stay as they are, so that nothing is compiled anew for them."""
    folder.mkdir(parents=True, exist_ok=True)
    git("init", "--quiet", folder=folder)
    git("fetch", "--quiet", str(ROOT), "HEAD", folder=folder)
    git("checkout", "--quiet", "--force", "--detach", commit, folder=folder)


def count(report):
    """{"passed": 3, ...} of pytest's JUnit file; a part of a test that breaks down counts as failed."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    found = [
        {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
        for suite in suites
    ]
    all_, failed, skipped = (
        sum(suite[name] for suite in found for name in names)
        for names in (["tests"], ["failures", "errors"], ["skipped"])
    )
    return {"passed": all_ - failed - skipped, "failed": failed, "skipped": skipped}


def choose(only, without):
    """(pytest's arguments, what the page says) for the files tests/test_NAME.py that are asked for."""
    if only:
        return [f"tests/test_{name}.py" for name in only], "only " + ", ".join(f"`{name}`" for name in only)
    ignored = [f"--ignore-glob=tests/test_{name}.py" for name in without]
    return ignored, "all" + (" but " if without else "") + ", ".join(f"`{name}`" for name in without)


def test(pair, program, commit, chosen, folder, arguments):
    """What came of a pair; `program` is its Python."""
    python, torch = pair.split(":")
    source, venv, report = folder / "source", folder / "venv", folder / "tests.xml"
    today = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}"
    files, words = chosen
    result = {"python": python, "torch": torch, "tests": words, "date": today, "commit": commit}
    check_out(source, commit)
    report.unlink(missing_ok=True)
    options = " ".join([*files, f"--junit-xml={report}", *arguments])
    command = ["make", "test", f"VENV={venv}", f"PYTHON={program}", f"TORCH=torch=={torch}"]
    ran = subprocess.run([*command, f"TEST_ARGS={options}"], cwd=source)
    if not report.exists():
        return result | {"error": f"`make test` ended with status {ran.returncode} before a test"}
    asked = "import platform, torch; print(platform.python_version(), torch.__version__)"
    ours = [str(venv / "bin/python"), "-c", asked]
    said = subprocess.run(ours, check=True, capture_output=True, text=True).stdout.split()
    return result | dict(zip(("python", "torch"), said, strict=True)) | count(report)


def table(results):
    """The page's rows, by Python and then torch."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- | ---: | ---: | ---: | --- | --- | --- |"]

    def numbers(pair):
        return [int(number) for number in re.findall(r"\d+", pair)]

    for pair in sorted(results, key=numbers):
        of = results[pair]
        found = [of.get(name, "–") for name in ("passed", "failed", "skipped")]
        cells = [of["python"], of["torch"], *found, of.get("error", of["tests"]), of["date"], of["commit"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def write_docs(results):
    before, _, rest = DOCS.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    DOCS.write_text(before + BEGIN + table(results) + end + after)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="make test-matrix", description=__doc__.splitlines()[0])
    parser.add_argument(
        "pairs", nargs="*", metavar="PYTHON:TORCH", help=f"of {', '.join(PAIRS)}; default: all"
    )
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="NAME", help="files tests/test_NAME.py, * and ? allowed"
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these files alone")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/matrix")
    parser.add_argument("--again", action="store_true", help="also pairs that have a result of this commit")
    parser.add_argument("--docs", action="store_true", help="test nothing, make the page from the results")
    parser.add_argument(
        "--pytest", nargs=argparse.REMAINDER, default=[], help="what follows goes to pytest: -n 2"
    )
    options = parser.parse_args(arguments)
    wrong = [pair for pair in options.pairs if not re.fullmatch(r"\d+\.\d+:\d+\.\d+\.\d+\S*", pair)]
    if wrong:
        parser.error(f"{wrong[0]!r} is no pair as 3.11:2.13.0")
    return options


def main(arguments=None):
    options = parse(arguments)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    commit, chosen = git("rev-parse", "--short", "HEAD"), choose(options.only, options.without)
    for pair in [] if options.docs else options.pairs or PAIRS:
        if not options.again and results.get(pair, {}).get("commit") == commit:
            print(f"{pair}: has a result of {commit}")
            continue
        program = find_python(pair.partition(":")[0])
        if program is None:
            print(f"{pair}: this Python is not here, left out")
            continue
        print(f"{pair}: {commit}", flush=True)
        folder = (options.folder / pair.replace(":", "-")).resolve()
        results[pair] = test(pair, program, commit, chosen, folder, options.pytest)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
        print(f"{pair}: {results[pair]}", flush=True)
    write_docs(results)
    print(table(results), end="")
    return int(any(of.get("failed") or "error" in of for of in results.values()))


if __name__ == "__main__":
    sys.exit(main())
