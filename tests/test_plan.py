"""How a call is shared among threads, as its plan tells, and where a profile says that its time went."""

from types import SimpleNamespace

import pytest
import torch

import rnnfast
from rnnfast import _C, info


def planned(mode="lstm", T=100, B=1, H=512, **other):
    """The plan of one dense layer whose input is as wide as its state, with two threads unless told."""
    return _C.plan(mode, T=T, B=B, I=H, H=H, P=H, **{"N": T * B, "threads": 2, **other})


def test_one_thread_is_never_split():
    assert planned(B=64, threads=1)["split"] == "serial"


@pytest.mark.parametrize("mode", ["lstm", "gru", "rnn_tanh"])
def test_a_call_too_short_to_pay_for_a_second_thread_is_not_split(mode):
    assert planned(mode, T=1, H=16)["split"] == "serial"


def test_one_row_is_split_by_units():
    plan = planned(B=1)
    assert (plan["split"], plan["parts"]) == ("units", 2)


def test_a_step_of_weights_that_are_rounded_as_they_are_read_is_split_sooner():
    pairs = {"T": 1, "B": 1, "N": 1, "H": 256, "I": 128, "P": 128, "matrix_unit": True, "threads": 2}
    assert _C.plan("lstm", **pairs)["split"] == "serial"
    assert _C.plan("lstm", **pairs, rounds=True)["split"] == "units"


def test_few_steps_are_split_by_rows_only_where_another_threads_packed_parts_are_soon_read():
    assert planned(T=2, B=64, H=256, products=6)["split"] == "units"
    assert planned(T=100, B=64, H=256, products=6)["split"] == "rows"


def test_a_small_layer_is_not_split_by_units_where_meeting_takes_long():
    assert planned(T=1000, H=64, meeting_us=0.1)["split"] == "units"
    assert planned(T=1000, H=64, meeting_us=0.5)["split"] == "serial"
    assert planned(T=1000, H=256, meeting_us=0.5)["split"] == "units"


def test_a_small_batch_is_split_by_units_where_threads_meet_quickly_enough():
    assert planned(T=4, B=16, H=256, meeting_us=0.08)["split"] == "units"
    assert planned(T=100, B=16, H=256, meeting_us=0.08)["split"] == "units"
    assert planned(T=100, B=16, H=256, meeting_us=2.0)["split"] == "rows"


def test_backward_of_many_rows_is_split_by_rows_where_forward_is_split_by_units():
    assert planned(B=64, H=512)["split"] == "units"
    assert planned(B=64, H=512, backward=True)["split"] == "rows"


def test_rows_of_different_lengths_are_split_by_rows_too():
    assert planned(B=64, H=256, N=100 * 40, meeting_us=0.45)["split"] == "rows"
    assert planned(B=2, H=256, N=100 + 1)["split"] == "units"  # nearly all of it is one row's


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_few_rows_are_not_split_where_each_half_reads_all_weights_from_beyond_the_second_cache(backward):
    assert planned(B=16, H=1024, meeting_us=0.45, backward=backward)["split"] == "units"
    assert planned(B=64, H=256, meeting_us=0.45, backward=backward)["split"] == "rows"


def test_threads_that_meet_slowly_share_weights_that_the_first_cache_does_not_hold():
    assert planned(H=64, meeting_us=0.45)["split"] == "serial"
    assert planned(H=128, meeting_us=0.45)["split"] == "units"


@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
def test_what_a_cache_holds_is_counted_in_bytes(vector_bytes):
    # W_hh takes 1 MiB
    machine = dict(vector_bytes=vector_bytes, second_cache=1 << 20, meeting_us=2.0)
    assert planned(B=16, H=256, **machine)["split"] == "rows"


def test_one_step_of_a_frozen_layer_is_shared_where_its_weights_are_more_than_half_of_the_second_cache():
    splits = {H: planned(T=1, H=H, frozen=True)["split"] for H in (64, 128, 192, 256, 512)}
    assert splits == {64: "serial", 128: "serial", 192: "serial", 256: "units", 512: "units"}


def test_two_directions_have_a_thread_each_where_one_reads_all_weights_from_its_own_cache():
    def split(mode="lstm", **other):
        return planned(mode, directions=2, **other)["split"]

    for backward in (False, True):
        assert split(H=64, backward=backward) == "directions"
        assert split(H=256, backward=backward) == "directions"
        assert split("gru", B=16, H=256, backward=backward) == "directions"
        assert split(H=512, backward=backward) == "units"  # 4 MiB of W_hh, in caches of 2
    assert split(H=256, meeting_us=2.0) == "directions"
    assert split(T=1, H=16) == "serial"
    assert split(H=64, threads=1) == "serial"
    assert split(H=64, threads=16, meeting_us=0.3) == "directions"
    assert split(B=64, H=256, threads=16) == "rows"
    assert planned(H=64, directions=2)["parts"] == 2


def test_a_layer_of_one_direction_is_serial_where_directions_are_forced():
    torch.set_num_threads(2)
    info.set_split("directions")
    for layer in (rnnfast.LSTM(5, 9), rnnfast.DeepTransitionRNN(5, 9, depth=2, width=8)):
        layer(torch.randn(4, 3, 5))[0].sum().backward()
        assert info.last_run()["split"] == "serial"


def test_directions_take_turns_in_backward_where_many_rows_would_take_much_memory():
    torch.set_num_threads(2)
    for T, B, H, beside in ((10, 100, 32, True), (10, 100, 300, False), (5000, 1, 64, True)):
        layer = rnnfast.LSTM(8, H, bidirectional=True)
        layer(torch.randn(T, B, 8))[0].sum().backward()
        assert (info.last_run()["split"] == "directions") == beside


def test_the_plan_never_has_more_parts_than_threads():
    for threads in (1, 2, 3, 8, 64):
        assert 1 <= planned(B=64, threads=threads)["parts"] <= threads


def test_the_plan_of_an_unknown_mode_names_it():
    with pytest.raises(RuntimeError, match="'lstn'"):
        planned("lstn")


@pytest.mark.parametrize("split", ["serial", "units", "rows"])
def test_a_profile_says_where_the_time_goes(split):
    model, x = rnnfast.LSTM(32, 64), torch.randn(50, 8, 32)
    info.set_split(split)
    try:
        with info.profile() as seconds:
            model(x)[0].sum().backward()
    finally:
        info.set_split(None)
    elapsed = seconds.pop("elapsed")
    assert set(seconds) == {"outside", "pack", "product", "cell", "wait", "other"}
    assert elapsed == pytest.approx(sum(seconds.values()))
    assert all(seconds[work] > 0 for work in ("outside", "pack", "product", "cell"))
    model(x)
    with info.profile() as seconds:
        pass  # what ran before is not counted
    assert seconds["product"] == 0 and seconds["outside"] == seconds["elapsed"]


def test_a_profile_of_calls_side_by_side_has_nothing_below_zero(monkeypatch):
    found = {"elapsed": 1.0, "kernels": 1.9, "product": 3.0, "cell": 1.0}
    monkeypatch.setattr(info, "_C", SimpleNamespace(start_profile=lambda: None, stop_profile=lambda: found))
    with info.profile() as seconds:
        pass
    assert seconds == {"elapsed": 1.0, "outside": 0.0, "product": 0.75, "cell": 0.25}
