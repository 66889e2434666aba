"""One layer beside its peers: times, outputs, memory, and how near this machine's limit it comes."""

from __future__ import annotations

import torch

from . import memory
from .case import Case
from .options import LOOP, Unusable, first_line
from .peers import Peer, Problem, baseline, first_calls, makers
from .processes import in_process
from .progress import Bar
from .roofline import BYTES, NoProbe, Team, bound, limit
from .rounds import figures, interleave, undisturbed
from .tables import Table

STAGES = 4  # of a measurement, for the bar


class Machine:
    """Its limit for a case; where there is none, `none` says why."""

    def __init__(self, threads: int):
        self.teams = [Team(count) for count in sorted({1, threads})]

    def limit(self, case: Case, training: bool, device: str, beaten_by: float | None = None) -> dict:
        """Milliseconds, and what bounds; measured once more where a call has taken fewer."""
        if device != "cpu":
            return {"none": "the limit is known of the CPU only"}
        if case.dtype not in BYTES:
            return {"none": f"the limit is known of {' and '.join(BYTES)} only"}
        try:
            seconds = limit(case, training, self.teams)
            if beaten_by is not None and beaten_by < seconds * 1e3:  # a busy moment has lowered the rates
                for team in self.teams:
                    team.measure_again()
                seconds = limit(case, training, self.teams)
            return {"ms": seconds * 1e3, "bound": bound(case, self.teams)}
        except NoProbe as error:
            return {"none": str(error)}


def measure(case: Case, asked, seconds: float, machine: Machine, bar: Bar) -> dict:
    """One row: what is found of each peer, the limit, the path."""
    training = asked.training
    bar.begin("first calls")
    try:
        problem = Problem.make(case)
        if asked.device != "cpu":
            problem = problem.to(asked.device)
        with torch.inference_mode(not training):
            chosen = made(problem, asked)
            first, differences, off = first_calls(problem, training, chosen)
            path = explained(problem, training)
    except (RuntimeError, MemoryError) as error:
        raise Unusable(f"{case.cell} {case.shape} cannot be run here ({first_line(error)})") from None
    with torch.inference_mode(not training):
        bar.begin("this machine's limit")
        machine.limit(case, training, asked.device)  # measures its rates beside the times that they judge
        bar.begin("timing, in turns")
        calls = {name: peer.call for name, peer in chosen.items()}
        slow = {name for name, took in first.items() if took > 0.1}
        sync = torch.cuda.synchronize if asked.device != "cpu" else lambda: None
        with undisturbed():
            times = interleave(calls, seconds, 3, slow=slow, sync=sync, tick=bar.within)
        quickest = min(min(values) for values in times.values()) * 1e3
        least = machine.limit(case, training, asked.device, beaten_by=quickest)
        bar.begin("memory")
        bytes = peaks(case, asked, calls)
    found = figures(times, first, differences)
    base = found[baseline(case)]["ratio"]  # as long as rnnfast's
    for name, peer in found.items():
        peer["speedup"] = base / peer.pop("ratio")
        peer["memory_bytes"] = bytes.get(name)
        peer["of_limit"] = least["ms"] / peer["median_ms"] if "ms" in least else None
    return {
        "cell": case.cell,
        "shape": case.shape,
        "mode": "training" if training else "inference",
        "device": asked.device,
        "rounds": len(times["rnnfast"]),
        "peers": found,
        "limit": least,
        "explain": path,
        "failed": "; ".join(judged(case, training, off)),
    }


def judged(case: Case, training: bool, off: list[str]) -> list[str]:
    """Of those who are too far off, ours.

    Not where relu's gradient jumps: an argument that rounding puts on the other side of 0 is no fault.
    """
    jumps = training and case.nonlinearity == "relu"
    return [] if jumps else [text for text in off if text.startswith("rnnfast")]


def made(problem: Problem, asked) -> dict[str, Peer]:
    """The peers that were asked for; a padded batch stands beside a packed one."""
    others = [name for name in asked.peers if name != LOOP]
    makes = makers(problem, asked.training, asked.threads, others)
    kept = ("Python loop" if LOOP in asked.peers else None, baseline(problem.case))
    return {name: make() for name, make in makes.items() if name != "Python loop" or name in kept}


def explained(problem: Problem, training: bool) -> str:
    layer, x = problem.ours(), problem.rows()
    with torch.set_grad_enabled(training):
        return layer.explain(x) if problem.state is None else layer.explain(x, problem.state)


def peaks(case: Case, asked, calls: dict) -> dict[str, int]:
    """Bytes that a call of each peer takes at most; nothing where the system does not tell."""
    if asked.device != "cpu":
        return {name: memory.peak_on_gpu(call) for name, call in calls.items()}
    if not memory.FORGET.exists():
        return {}
    others = [name for name in asked.peers if name != LOOP]
    given = case, asked.training
    return {
        name: in_process(memory.peak, *given, name, asked.threads, others, start="forkserver")
        for name in calls
    }


def cells_of(peer: dict) -> list[str]:
    """What a table's line says of a peer."""
    memory, part = peer["memory_bytes"], peer["of_limit"]
    return [
        f"{peer['median_ms']:.3g}",
        f"{peer['q1_ms']:.3g}–{peer['q3_ms']:.3g}",
        f"{peer['speedup']:.2f}×",
        f"{peer['difference']:.0e}",
        "–" if memory is None else f"{memory / 1024:,.0f}",
        "–" if part is None else f"{100 * part:.0f} %",
    ]


def table(row: dict) -> Table:
    base = next(iter(row["peers"]))
    columns = ["", "ms", "quartiles", f"over {base}", "difference", "KiB", "of the limit"]
    return columns, [[name, *cells_of(peer)] for name, peer in row["peers"].items()]


def notes(row: dict) -> list[str]:
    """What stands below a table."""
    least = row["limit"]
    if "ms" in least:
        said = f"This machine's limit, by its measured rates: {least['ms']:.3g} ms ({least['bound']})."
    else:
        said = f"No limit is given: {least['none']}."
    return [columns_mean(row, row["rounds"]), said, row["explain"], *wrong(row)]


def columns_mean(row: dict, rounds: int) -> str:
    gradients = ", gradients included" if row["mode"] == "training" else ""
    return (
        f"Medians of {rounds} rounds in turns. Difference: the largest from the result in float64, as a "
        f"share of its largest value{gradients}. KiB: what a call takes at most, beside input and weights."
    )


def wrong(row: dict) -> list[str]:
    return [f"WRONG, {row['shape']}: {row['failed']}."] * bool(row["failed"])


def title(row: dict) -> str:
    return f"{row['cell']} {row['shape']}, {row['mode']}"
