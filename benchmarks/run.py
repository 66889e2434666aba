"""Times every case against its peers and writes the report: python -m benchmarks.run --help."""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

import torch
from tqdm import tqdm

import rnnfast.info
from rnnfast.bench.peers import Problem, all_peers, baseline, first_calls
from rnnfast.bench.roofline import Team, bound, element, limit
from rnnfast.bench.rounds import figures, interleave, pairs, settle, spread, undisturbed
from rnnfast.bench.sessions import SESSIONS, needs

from . import record, report
from .cases import CASES, Case


def sessions(case: Case) -> list[str]:
    """The other libraries' that are installed and make products as the case asks."""
    if case.precision == "bf16" and rnnfast.info.isa() not in ("avx512_bf16", "amx_bf16"):
        return []  # without such products they would be float32's
    alike = [name for name, session in SESSIONS.items() if session.precision == case.precision]
    return [name for name in alike if not needs(name)]


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
    with torch.inference_mode(not training):
        peers = all_peers(problem, training, torch.get_num_threads(), others=sessions(case))
        first, differences, wrong = first_calls(problem, training, peers)
        plan = rnnfast.info.last_run()  # rnnfast is called last
        del plan["cuda"]
        limit(case, training, teams)  # measures the rates it needs, beside the times they judge
        calls = {name: peer.call for name, peer in peers.items()}
        slow = {name for name, took in first.items() if took > 0.1}
        brief = slow & {"Python loop"} - {baseline(case)}
        with undisturbed():
            times = interleave(calls, seconds, least, slow=slow, brief=brief)
            settle()
            spent = shares(calls["rnnfast"], median(times["rnnfast"]))
    return {
        "name": case.name,
        "mode": mode,
        "cell": case.cell,
        "shape": case.shape,
        "reason": case.reason,
        "batch": case.batch,
        "precision": case.precision,
        "required": case.required,
        "baseline": baseline(case),
        "rounds": len(times["rnnfast"]),
        "plan": plan,
        "peers": figures(times, first, differences),
        "spent": spent,
        "speedup": spread(pairs(times)[baseline(case)]),
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
    multiplied = {element(case) for case in cases} | {case.dtype for case in cases}
    roofline = {str(team.threads): team.describe(multiplied) for team in teams}
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
