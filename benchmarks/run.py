"""Times every case against its peers and writes the report: python -m benchmarks.run --help."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Container
from statistics import median, quantiles

import torch
from torch import Tensor
from tqdm import tqdm

import rnnfast.info
from rnnfast.testing import TOLERANCE, error

from . import record, report
from .cases import CASES, Case
from .peers import Problem, all_peers, baseline, first_outcome, reference
from .roofline import Team, bound, limit

# The tests' rule: at most twice the baseline's error, and some of the scale. Ours may add 4 of the table's
# tolerances, for sums are long here; a peer, which only has to compute the same thing, 16.
OURS, OTHERS = 4, 16


def settle() -> None:
    """Wait until the threads of the peer before have stopped spinning (onnxruntime's do for 30 ms).

    They would take a core from whoever comes next.
    """
    for _ in range(40):
        before = time.process_time()
        time.sleep(5e-3)
        if time.process_time() - before < 1e-3:
            return


def interleave(
    calls: dict[str, Callable],
    seconds: float,
    least: int,
    most: int = 50,
    min_time: float = 10e-3,
    slow: Container[str] = (),
    brief: Container[str] = (),
) -> dict[str, list[float]]:
    """Seconds per call in rounds A B C A B C ..., one figure a round and peer.

    One call of a peer in `slow` is known to be enough of a turn. Those in `brief` are timed in three rounds
    only, and three are enough of all when they took five times `seconds`.
    """

    def turn(call: Callable, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    # the fastest of three: after a call whose second thread came late turns would be too short to be warm
    repeats = {
        name: 1 if name in slow else max(1, min(1000, int(min_time / min(turn(call, 1) for _ in range(3)))))
        for name, call in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(most):
        spent = time.perf_counter() - start
        if done >= least and spent > seconds or done >= 3 and spent > 5 * seconds:
            break
        for name, call in calls.items():
            if name in brief and done >= 3:
                continue
            settle()
            if not times[name] or times[name][-1] < 20e-3:
                turn(call, repeats[name])  # wakes this peer's threads, fills the caches
            times[name].append(turn(call, repeats[name]))
    return times


def compare(
    results: dict[str, tuple[Tensor, ...]], exact: tuple[Tensor, ...], base: str
) -> tuple[dict[str, float], list[str]]:
    """Each peer's largest error as a share of the scale of the tensor it is in, and who is too far off."""
    scales = [e.abs().max().item() for e in exact]
    errors = {
        name: [error(r, e) / scale for r, e, scale in zip(result, exact, scales, strict=True)]
        for name, result in results.items()
    }
    wrong = []
    for name, found in errors.items():
        tolerance = TOLERANCE[results[name][0].dtype] * (OURS if name == "rnnfast" else OTHERS)
        if any(
            not f <= 2 * (b if name != base else 0) + tolerance
            for f, b in zip(found, errors[base], strict=True)
        ):
            wrong.append(f"{name} differs by {max(found):.1e}")
    return {name: max(found) for name, found in errors.items()}, wrong


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return {"median": median(values), "q1": low, "q3": high}


def shares(call: Callable, seconds: float) -> dict[str, float]:
    """What rnnfast spends its time on, as parts of the whole."""
    with rnnfast.info.profile() as spent:
        for _ in range(max(1, int(0.1 / seconds))):
            call()
    elapsed = spent.pop("elapsed")
    return {work: part / elapsed for work, part in spent.items()}


def measure(case: Case, mode: str, teams: list[Team], seconds: float, least: int) -> dict:
    """One row of the report; its limit is added when the run ends."""
    training = mode == "training"
    problem = Problem.make(case)
    results, first = {}, {}
    with torch.inference_mode(not training):
        exact = reference(problem, training)
        peers = all_peers(problem, training, torch.get_num_threads())
        for name, peer in peers.items():
            outputs, first[name] = first_outcome(peer, case)
            results[name] = peer.compare(outputs)
        differences, wrong = compare(results, exact, baseline(case))
        plan = rnnfast.info.last_run()  # rnnfast is called last
        del plan["cuda"]
        limit(case, training, teams)  # measures the rates it needs, beside the times they judge
        gc.collect()
        gc.disable()
        calls = {name: peer.call for name, peer in peers.items()}
        slow = {name for name, took in first.items() if took > 0.1}
        brief = slow & {"Python loop"} - {baseline(case)}
        times = interleave(calls, seconds, least, slow=slow, brief=brief)
        settle()
        spent = shares(calls["rnnfast"], median(times["rnnfast"]))
        gc.enable()
    pairs = {  # of the rounds that both were in
        name: [other / ours for other, ours in zip(values, times["rnnfast"], strict=False)]
        for name, values in times.items()
    }
    return {
        "name": case.name,
        "mode": mode,
        "cell": case.cell,
        "shape": case.shape,
        "reason": case.reason,
        "required": case.required,
        "baseline": baseline(case),
        "rounds": len(times["rnnfast"]),
        "plan": plan,
        "peers": {
            name: {
                **{f"{key}_ms": value * 1e3 for key, value in spread(values).items()},
                "first_ms": first[name] * 1e3,
                "difference": differences[name],
                "ratio": median(pairs[name]),
            }
            for name, values in times.items()
        },
        "spent": spent,
        "speedup": spread(pairs[baseline(case)]),
        "failed": "; ".join(wrong),
    }


def run(cases: list[Case], threads: int, seconds: float, least: int, command: str) -> dict:
    """The whole report as it is written to JSON."""
    torch.set_num_threads(threads)
    teams = [Team(count) for count in sorted({1, threads})]
    work = [(case, mode) for case in cases for mode in case.modes]
    rows = []
    with tqdm(work, unit="row") as bar:
        for case, mode in bar:
            bar.set_description(f"{case.name} {mode}")
            rows.append(measure(case, mode, teams, seconds, least))
    roofline = {str(team.threads): team.describe({case.dtype for case in cases}) for team in teams}
    for team in teams:
        team.measure_again()
    for (case, mode), row in zip(work, rows, strict=True):
        row["limit_ms"] = limit(case, mode == "training", teams) * 1e3
        row["bound"] = bound(case, teams)
        row["product_limit_ms"] = limit(case, mode == "training", teams, bare=True) * 1e3
        for peer in row["peers"].values():
            peer["fraction"] = row["limit_ms"] / peer["median_ms"]
    return {
        "kind": "bench",
        "meta": record.meta(threads, command),
        "roofline": roofline,
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> int:
    names = [case.name for case in CASES]
    parser = record.parser("run", __doc__)
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", choices=names, help=f"only these of: {', '.join(names)}"
    )
    options = parser.parse_args(arguments)

    part = options.quick or options.rows
    chosen = [case for case in CASES if case.name in (options.rows or names)]
    if options.quick and not options.rows:
        chosen = [case for case in chosen if case.quick]
    seconds, least = (0.5, 3) if options.quick else (2.0, 5)
    result = run(chosen, options.threads, seconds, least, record.command("run", arguments))
    report.write(result, options.out or (record.PART if part else record.RESULTS))
    return 1 if report.faults(result) else 0


if __name__ == "__main__":
    sys.exit(main())
