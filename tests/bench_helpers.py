"""What the tests of the benchmarks share: a tiny case, and a machine of round numbers for it."""

from types import SimpleNamespace

import pytest

from benchmarks import run
from rnnfast.bench.case import Case

TINY = Case("tiny", "a test", "LSTM", batch=2, hidden=5, steps=3, inputs=4)


def team(threads=2, flops=1e9, bandwidth=1e8, barrier=1e-6, sigmoids=1e7):
    """A machine of round numbers."""
    return SimpleNamespace(
        threads=threads,
        flops=lambda dtype: flops,
        bandwidth=lambda size: bandwidth,
        barrier=lambda: barrier,
        sigmoids=lambda: sigmoids,
        measure_again=lambda: None,
        describe=lambda dtypes: {
            "gflops": dict.fromkeys(dtypes, flops / 1e9),
            "read_gb_per_s": {"memory": bandwidth / 1e9},
            "barrier_us": barrier * 1e6,
            "sigmoid_ns_per_16": 16e9 / sigmoids,
        },
    )


@pytest.fixture
def round_machine(monkeypatch):
    """No probe runs: the machine is so fast that nothing beats its limit."""
    monkeypatch.setattr(run, "Team", lambda threads: team(threads, 1e18, 1e18, 0.0, 1e18))
