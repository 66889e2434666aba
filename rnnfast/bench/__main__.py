"""`python -m rnnfast.bench`, `rnnfast-bench`: rnnfast beside torch.nn on this machine.

Exit status: 0, 1 if an output is wrong, 2 if what was asked for cannot be, which a sentence then says.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import warnings

import torch

from .._enable import disable
from . import cell, machine, model, sweep
from .options import Unusable, read
from .progress import Bar
from .tables import aligned


def run(asked) -> tuple[dict, str]:
    """The result as it is written to JSON, and as it is printed."""
    about = {**machine.describe(), "threads": asked.threads}
    about["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    said = machine.sentence(about) + "."
    if asked.model is not None:
        with contextlib.redirect_stdout(sys.stderr):  # what the model prints is not the result
            result = model.run(asked)
        text = model.text(result)
    elif asked.sweep:
        with Bar(cell.STAGES * len(asked.cases)) as bar:
            result = sweep.measure(asked, cell.Machine(asked.threads), bar)
        text = "\n".join([sweep.title(result), "", aligned(sweep.table(result), 0), "", *sweep.notes(result)])
    else:
        with Bar(cell.STAGES) as bar:
            result = cell.measure(asked.cases[0], asked, asked.seconds, cell.Machine(asked.threads), bar)
        text = "\n".join([cell.title(result), "", aligned(cell.table(result), 1), "", *cell.notes(result)])
    return {"about": about, **result}, f"{said}\n\n{text}"


def main(arguments: list[str] | None = None) -> int:
    """Times what the options ask for, and prints it -> the exit status.

    Args:
        arguments: the options, as ["--cell", "gru", "-T", "50"]; None is the command line's.

    Returns:
        0, 1 if an output is wrong, 2 if what was asked for cannot be, which a sentence on stderr then says.
    """
    # what is called torch.nn is torch's, here and in the processes that are started
    os.environ.pop("RNNFAST_ENABLE", None)
    disable()
    try:
        asked = read(arguments)
        torch.set_num_threads(asked.threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the model's, and of torch's
            result, text = run(asked)
        if asked.out is not None:
            leave(result, asked)
    except Unusable as error:
        print(f"rnnfast.bench: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=1) if asked.json else text)
    return 1 if wrong(result) else 0


def wrong(result: dict) -> bool:
    return any(row["failed"] for row in result.get("rows", [result]))


def leave(result: dict, asked) -> None:
    """The files of --out."""
    try:
        (asked.out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
        if "sizes" in result:
            sweep.chart(result, machine.sentence(result["about"]), asked.out / "sweep.png")
    except OSError as error:
        raise Unusable(f"--out {asked.out} cannot be written ({error.strerror})") from None


if __name__ == "__main__":
    sys.exit(main())
