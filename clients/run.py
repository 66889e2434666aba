"""Other people's libraries with rnnfast under them: outputs and training beside torch's, and the calls taken.

python clients/run.py [LIBRARY ...] [--times] [--rounds N] [--out FOLDER] [--docs]
python clients/run.py --read FILE [--docs]

Each client runs in processes of its own (`clients/process.py`): without rnnfast, under rnnfast.enable(), and
after rnnfast.convert(); with --times once more, to be timed. Leaves clients.json in the folder and prints its
tables; --docs puts these into docs/clients.md. `make test-clients` runs it where the libraries are installed.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from rnnfast.bench.model import expected, over

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs/clients.md"
BEGIN, END = "<!-- clients:begin -->\n", "<!-- clients:end -->"
NAMES = sorted(path.stem for path in (HERE / "libraries").glob("*.py"))
WAYS = ("enabled", "converted")
# By how much values may differ from torch's, as a part of the largest in a tensor (float32). Steps of the
# parameters lose digits as they are added to them, and Adam makes even the smallest gradient a whole step.
TOLERANCE = {"outputs": 1e-5, "losses": 1e-5, "gradients": 1e-4, "steps": 2e-2}


class Failed(Exception):
    """A process that ended otherwise than well; what it said last."""


def process(name, way):
    """What `clients/process.py` leaves."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/result"
        program = [sys.executable, str(HERE / "process.py"), name, way, file]
        # RNNFAST_ENABLE and torch's autoload would bring rnnfast into the process that has to be without
        env = {key: value for key, value in os.environ.items() if not key.startswith("RNNFAST_")}
        env |= {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(program, capture_output=True, text=True, cwd=folder, env=env)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise Failed(f"{way}: {last} (exit status {done.returncode})")
        return torch.load(file, weights_only=False)


def difference(found, expected):
    """The largest difference, as a part of the largest expected value."""
    if found.shape != expected.shape:
        raise Failed(f"shape {list(found.shape)}, torch's {list(expected.shape)}")
    if torch.equal(found, expected):
        return 0.0
    found, expected = found.double(), expected.double()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def compare(found, expected):
    """The largest difference of each kind of values, and those that are beyond the tolerance."""
    worst, faults = {}, []
    for kind, tensors in expected.items():
        if found[kind].keys() != tensors.keys():
            raise Failed(f"{kind} {sorted(found[kind])}, torch's {sorted(tensors)}")
        each = {key: difference(found[kind][key], value) for key, value in tensors.items()}
        if each:
            worst[kind] = max(each.values())
        faults += [f"{kind} {key} differ by {e:.1e}" for key, e in each.items() if not e <= TOLERANCE[kind]]
    return worst, faults


def check(name):
    """A row of the result."""
    of_torch = process(name, "torch")
    expected = of_torch["values"]
    moved = any(step.any() for step in expected["steps"].values())
    row = {"name": name, "version": of_torch["version"], "what": of_torch["WHAT"]}
    row |= {"not_taken": of_torch["NOT_TAKEN"], "not_converted": of_torch["NOT_CONVERTED"]}
    faults = [] if moved else ["training moves no parameter"]
    for way in WAYS:
        found = process(name, way)
        row[way], differ = compare(found["values"], expected)
        faults += [f"{way}: {text}" for text in differ]
        if way == "enabled":
            row |= {"counts": found["counts"], "rnnfast": found["rnnfast"]}
        else:
            row["layers"] = found["layers"]
    for done, reason in (("taken", "not_taken"), ("layers", "not_converted")):
        n = calls(row)[0] if done == "taken" else row["layers"]
        if bool(n) == bool(row[reason]):
            faults.append(f"{done}: {n}, {'but ' if n else 'and no '}reason why not")
    return row | {"faults": faults}


def calls(row):
    """(calls taken, calls passed on by the reason) of all operators."""
    taken, passed = 0, {}
    for reasons in row["counts"].values():
        for why, n in reasons.items():
            if why == "taken":
                taken += n
            else:
                passed[why] = passed.get(why, 0) + n
    return taken, passed


def run(options):
    result = {"meta": meta(), "rows": [], "missing": []}
    for name in options.names or NAMES:
        try:
            version(name)
        except PackageNotFoundError:
            print(f"{name}: not installed, left out", flush=True)
            result["missing"].append(name)
            continue
        try:
            row = check(name)
            if options.times:
                row["times"] = process(name, str(options.rounds))
        except Failed as error:
            row = {"name": name, "version": version(name), "faults": [str(error)]}
        result["rows"].append(row)
        print(f"{name}: {'; '.join(row['faults']) or 'as by torch'}", flush=True)
        save(result, options.out)
    return result


def meta():
    cpu = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.*)$", cpu.read_text() if cpu.exists() else "", re.MULTILINE)
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "cpu": models[0] if models else platform.processor(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": f"{now:%Y-%m-%d %H:%M} UTC",
    }


def save(result, folder):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    numbers = re.compile(r"\[\s+([^\[\]{}\"]+?)\s+\]")  # a list of them is one line
    (folder / "clients.json").write_text(numbers.sub(lambda m: f"[{' '.join(m[1].split())}]", text) + "\n")


def pipes(columns, lines):
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *lines])


def line(row):
    def differs(way):
        return ", ".join(f"{kind} {value:.0e}" if value else f"{kind} 0" for kind, value in row[way].items())

    taken, passed = calls(row)
    found = f"{taken:,}" if taken else f"0: {row['not_taken']}"
    found += "".join(f"; {n:,} passed on: {why}" for why, n in passed.items())
    layers = str(row["layers"]) if row["layers"] else f"0: {row['not_converted']}"
    name = f"{row['name']} {row['version']}"
    return [name, row["what"], found, differs("enabled"), layers, differs("converted")]


def timed(row, part):
    """A line: torch's time, the layers' share and gain, and the whole's, expected by these and measured."""
    seconds = row["times"][part]
    whole, layers = seconds["whole"], seconds["layers"]

    def gain(times, way):
        return f"{over(times['torch.nn'], times[way]):.2f}×" if {"torch.nn", way} <= times.keys() else "–"

    of_torch = 1e3 * statistics.median(whole["torch.nn"])
    found = expected(whole, [layers]) if layers else None
    return [
        row["name"],
        f"{of_torch:.{2 if of_torch < 10 else 0}f}",
        f"{100 * found['share']:.0f} %" if found else "–",
        gain(layers, "enabled"),
        *([gain(seconds["inside"], "enabled")] if part == "forward" else []),
        f"{found['expected']['enabled']:.2f}×" if found else "–",
        *(gain(whole, way) for way in WAYS),
    ]


COLUMNS = "library|what runs|calls taken|enabled: differ by|layers converted|converted: differ by".split("|")
TIMED = ["library", "torch, ms", "layers' share", "layers alone"]
TIMED_WHOLE = ["expected", *WAYS]
PARTS = {
    "forward": ("Outputs", [*TIMED, "inside", *TIMED_WHOLE]),
    "train": ("Training", [*TIMED, *TIMED_WHOLE]),
}


def report(result):
    """The tables, in Markdown."""
    good = [row for row in result["rows"] if "layers" in row]
    m = result["meta"]
    ours = "".join(f", rnnfast {version}" for version in sorted({row["rnnfast"] for row in good}))
    text = pipes(COLUMNS, [line(row) for row in good])
    text += f"\n\nPython {m['python']}, torch {m['torch']}{ours}; {m['date']}; `make test-clients`.\n"
    if faulty := [f"{row['name']}: {'; '.join(row['faults'])}" for row in result["rows"] if row["faults"]]:
        text += f"\nNot as by torch: {'. '.join(faulty)}.\n"
    if result["missing"]:
        text += f"\nNot installed: {', '.join(result['missing'])}.\n"
    if with_times := [row for row in good if "times" in row]:
        times = with_times[0]["times"]
        rounds = len(times["train"]["whole"]["torch.nn"])
        text += (
            f"\nMeasured by `make test-clients TIMES=1`: medians of {rounds} rounds in turns, "
            f"{times['threads']} threads, {m['cpu']} ({m['machine']}).\n"
        )
        for part, (title, columns) in PARTS.items():
            text += f"\n{title}:\n\n{pipes(columns, [timed(row, part) for row in with_times])}\n"
    return text


def write_docs(text):
    page = DOCS.read_text()
    head, rest = page.split(BEGIN)
    DOCS.write_text(head + BEGIN + text + END + rest.split(END)[1])


def arguments(given):
    parser = argparse.ArgumentParser(prog="python clients/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="LIBRARY", help=f"default: all of {', '.join(NAMES)}")
    parser.add_argument(
        "--times", action="store_true", help="times, too: some minutes more, on a quiet machine"
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing, at least 2")
    parser.add_argument("--out", type=Path, default=Path("results/clients"), help="folder of clients.json")
    parser.add_argument(
        "--read", type=Path, metavar="FILE", help="run nothing: the tables of this clients.json"
    )
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/clients.md")
    options = parser.parse_args(given)
    if unknown := [name for name in options.names if name not in NAMES]:
        sentence = f"clients: there is no client {', '.join(unknown)}; there are {', '.join(NAMES)}."
        print(sentence, file=sys.stderr)
        sys.exit(2)
    if options.rounds < 2:
        parser.error("--rounds should be at least 2")
    return options


def main(given=None):
    options = arguments(given)
    result = json.loads(options.read.read_text()) if options.read else run(options)
    text = report(result)
    print("\n" + text)
    if options.docs:
        write_docs(text)
    if not result["rows"]:
        print("clients: none of these libraries is installed.", file=sys.stderr)
    return int(not result["rows"] or any(row["faults"] for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
