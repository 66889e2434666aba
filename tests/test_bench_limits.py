"""The limits that a machine sets: they follow the formulas, and its rates are measured."""

import pytest
from bench_helpers import team

from rnnfast import _C
from rnnfast.bench.case import Case
from rnnfast.bench.roofline import Team, bound, limit


@pytest.mark.parametrize(
    "case, inference, training",
    [
        # 4 gates, I = 40, H = 100, B = 1, T = 10. t_proj: the product 2*4*100*40*10 / 1e9 = 320 us, reading
        # 64,000 bytes 640. A step: the product takes 2*4*100*100 / 1e9 = 80 us, reading 160,000 bytes 1600,
        # the barrier 1, 500 sigmoids 50: 1651.
        # Training: t_rec again, dx and dW_ih as t_proj each, dW_hh 2*4*100*100*10 / 1e9 = 800 us.
        (Case("", "", "LSTM", 1, 100, 10, inputs=40), 640 + 16510, 640 + 2 * 16510 + 2 * 320 + 800),
        # 3 gates, H = 100, B = 64, T = 2: t_proj = 3840 * T us, a step's product as much, reading only 1200;
        # rows enough for both threads: no barrier; 64 * 300 sigmoids 1920.
        (Case("", "", "GRU", 64, 100, 2), 7680 + 2 * 5760, 3 * 7680 + 4 * 5760 + 7680),
        # Both directions double all; each layer after the first reads both. One row each: no barrier.
        # Layer 1: the products 2*2*10*10 / 1e9 = 0.4 us, reading 8: t_proj 8, step 8 + 2; layer 2: 0.8 us and
        # 16: t_proj 16, step 10.
        (Case("", "", "RNN", 1, 10, 1, layers=2, directions=2), 44, 44 + 20 + 2 * 1.2 + 2 * 0.4),
        # Packed: 3 rows alive, then 1: products 2*300*3 / 1e9 and 0.6 us, reading 12, sigmoids 9 and 3.
        # The last step has one row: a barrier, 1 us. t_proj: the product 2.4 us, reading 12.
        (Case("", "", "GRU", 3, 10, 2, lengths=(2, 1, 1)), 12 + 21 + 16, 12 + 2.4 * 3 + 2 * 37),
        # Three products a step, 3 H H: 1200 bytes are 12 us, three barriers; projection H I: 0.2 us, reading
        # 4.
        (Case("", "", "DeepTransitionRNN", 1, 10, 1), 19, 19 + 15 + 2 * 0.2 + 0.6),
        # Half the bytes.
        (Case("", "", "RNN", 1, 10, 1, dtype="bfloat16"), 2 + 2 + 2, 2 + 4 + 4 + 0.4 + 0.2),
    ],
    ids=["lstm", "gru-rows", "directions-layers", "packed", "deep", "bfloat16"],
)
def test_limits_are_those_computed_by_hand(case, inference, training):
    assert limit(case, False, [team()]) * 1e6 == pytest.approx(inference)
    assert limit(case, True, [team()]) * 1e6 == pytest.approx(training)


def test_the_products_limit_is_the_limit_without_barrier_and_cell():
    one, many = Case("", "", "LSTM", 1, 100, 10, inputs=40), Case("", "", "GRU", 64, 100, 2)
    assert limit(one, False, [team()], bare=True) * 1e6 == pytest.approx(640 + 16000)
    assert limit(many, False, [team()], bare=True) * 1e6 == pytest.approx(7680 + 2 * 3840)
    assert (bound(one, [team()]), bound(many, [team()])) == ("reading", "multiplying")


def test_a_single_step_reads_both_weights_from_where_they_lie_together():
    asked = []
    machine = team()
    machine.bandwidth = lambda size: asked.append(size) or 1e8
    for steps, held in ((1, 4 * 4 * 100 * (100 + 40)), (10, 4 * 4 * 100 * 100)):
        asked.clear()
        limit(Case("", "", "LSTM", 1, 100, steps, inputs=40), False, [machine])
        assert set(asked) == {held}


def test_the_limit_takes_the_better_of_one_thread_and_all():
    case = Case("", "", "RNN", 1, 10, 1)
    alone = team(
        threads=1, flops=5e8, bandwidth=5e7, sigmoids=5e6
    )  # a step: 8 + 2 us, against 4 + 1 and a barrier
    assert limit(case, False, [alone, team(barrier=1e-6)]) * 1e6 == pytest.approx(4 + 6)
    assert limit(case, False, [alone, team(barrier=1e-3)]) * 1e6 == pytest.approx(4 + 10)


def test_products_of_parts_count_as_so_many_of_bfloat16(monkeypatch):
    sizes = []
    monkeypatch.setattr(_C, "products", lambda *asked: sizes.append(asked) or 6)
    case, machine = Case("", "", "GRU", 64, 100, 2), team()
    for rate, counts in ((12e9, 2e9), (5e9, 1e9)):  # multiply-adds make 1e9
        machine.flops = {"float32": 1e9, "bfloat16": rate}.get
        product = 2 * 3 * 100 * 100 * 64 / counts  # of x or h, a step; reading takes 1.2 ms
        assert limit(case, False, [machine], bare=True) == pytest.approx(2 * 2 * max(product, 0.0012))
    assert set(sizes) == {(64, 100, 2)}
    bfloat16 = Case("", "", "GRU", 64, 100, 2, dtype="bfloat16")
    assert limit(bfloat16, False, [machine], bare=True) == pytest.approx(2 * 2 * 2 * 3 * 100 * 100 * 64 / 5e9)
    assert set(sizes) == {(64, 100, 2)}


def test_rates_only_rise():
    machine, now = Team(1), {"rate": 3.0}
    assert machine._rate("key", lambda: now["rate"]) == 3.0
    for now["rate"], best in ((2.0, 3.0), (4.0, 4.0)):
        machine.measure_again()
        assert machine._rate("key", lambda: 0.0) == best


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_measured_peak_is_at_least_torchs_own_product_and_that_of_float32(dtype):
    machine = Team(1)
    peak = machine.flops(dtype)
    measured = {"float32", dtype}
    assert {key for key in machine._rates if key[2:] != (2048,)} == {
        key for kind in measured for key in [("mm", kind, 1024), ("fma", kind)]
    }
    for kind in measured:
        quick = 2 * 2048**3 / machine._rates["mm", kind, 1024][1] < 1.0
        assert (("mm", kind, 2048) in machine._rates) == quick
    assert peak == max(rate for _, rate in machine._rates.values())
