"""A few cases for pytest-benchmark, to compare commits: --benchmark-autosave, then --benchmark-compare.

Each keeps its speed-up over torch.nn as extra_info. Only outputs are asserted: a clock is no test.
"""

import pytest
import torch

from benchmarks.cases import CASES
from rnnfast.bench.peers import Problem, all_peers, baseline, reference
from rnnfast.bench.rounds import compare, interleave, spread

CHOSEN = [
    (case, mode)
    for case in CASES
    for mode in case.modes
    if case.name
    in ("lstm-b1-h64", "gru-b1-h64", "rnn-b1-h256", "lstm-b16-h256", "lstm-stream-h128", "deep-b1-h300")
]


@pytest.mark.parametrize("case, mode", CHOSEN, ids=[f"{case.name}-{mode}" for case, mode in CHOSEN])
def test_ratio(case, mode, benchmark):
    training = mode == "training"
    problem = Problem.make(case)
    with torch.inference_mode(not training):
        peers = all_peers(problem, training, torch.get_num_threads())
        pair = {name: peers[name].call for name in (baseline(case), "rnnfast")}
        outputs = {name: call() for name, call in pair.items()}
        assert compare(outputs, reference(problem, training), baseline(case))[1] == []
        times = interleave(pair, seconds=0.5, least=5)
        pairs = [base / ours for base, ours in zip(*times.values(), strict=True)]
        benchmark.extra_info["speedup"] = spread(pairs)
        benchmark(pair["rnnfast"])
