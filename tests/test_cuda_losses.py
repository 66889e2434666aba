"""A block of the resident kernel that waits in vain for another: it gives up, and says so with NaN."""

import pytest
import torch
from cuda_helpers import GATES, MARKS, emulated_run
from helpers import GRADIENTS, MODES, draw

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS


# a device, and how often 8 rows a team then takes
DEVICES = {
    "cluster": (90, 132, 1),
    "grid": (80, 132, 1),
    "cluster_of_more_rows": (90, 3, 2),
    "grid_of_more_rows": (80, 3, 2),
}
LOSSES = {"some_words": (100, -1), "all_words": (1, -1), "a_block": (0, 1)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", GATES)
def test_who_waits_in_vain_gives_up_with_nan_and_the_next_call_says_so(emulated, losing, mode, device, loss):
    capability, multiprocessors, batches = DEVICES[device]
    ops_of, T, B = torch.ops.rnnfast_emulated, 6, 9
    H = 257 if GATES[mode] == 1 else 130  # of several blocks, and of no more than needed
    rows = GATES[mode] * H
    weights = [draw(rows, 3), draw(rows, H).mul(0.03), None, None, None, *[None] * 5]
    c0 = draw(1, B, H) if MODES[mode]["has_cell"] else None
    arguments = [mode, draw(T, B, 3), draw(1, B, H), c0, *weights, None, False]
    arguments = [t.bfloat16() if isinstance(t, torch.Tensor) else t for t in arguments]
    ops_of.set_device(capability, multiprocessors)
    expected = emulated["recurrent"](*arguments, True)
    assert emulated_run()["team"] == {90: "cluster", 80: "grid"}[capability]
    assert emulated_run()["batches"] == batches
    assert emulated_run()["blocks"] > 1
    given = [expected[0], None, None, *arguments, expected[0], *expected[3:5], [True] * GRADIENTS]
    gradients = emulated["recurrent_backward"](*given)
    assert emulated_run()["batches"] == batches

    losing(*LOSSES[loss])
    y, hn, cn, *_ = emulated["recurrent"](*arguments, True)
    assert torch.equal(y[0], expected[0][0])  # for which nobody waits
    assert y[-1].isnan().any()
    assert hn.isnan().any()
    if loss == "all_words":
        assert y[1:].isnan().all()
        assert cn.isnan().all()
    losing(0, -1)
    with pytest.raises(RuntimeError, match="waited in vain for blocks that never ran; its output is NaN"):
        emulated["recurrent"](*arguments, True)
    for a, b in zip(emulated["recurrent"](*arguments, True), expected, strict=True):
        assert torch.equal(a, b)

    losing(*LOSSES[loss])
    dh0 = emulated["recurrent_backward"](*given)[1]
    assert dh0.isnan().all() if loss == "all_words" else dh0.isnan().any()
    losing(0, -1)
    assert ops_of.take_failure()  # who asks is told, and the next call is not
    assert not ops_of.take_failure()
    for a, b in zip(emulated["recurrent_backward"](*given), gradients, strict=True):
        assert torch.equal(a, b)


def test_a_lost_row_that_has_not_begun_is_nan_too(emulated, losing):
    """Of a PackedSequence in reverse: rows that wait for their begin pass on h0 as it came."""
    ops_of, H, lengths = torch.ops.rnnfast_emulated, 257, [7, 7, 3]
    weights = [draw(H, 2), draw(H, H).mul(0.03), None, None, None]
    sizes = torch.tensor([sum(length > t for length in lengths) for t in range(7)])
    arguments = ["rnn_tanh", draw(sum(lengths), 2), draw(2, 3, H), None, *weights, *weights, sizes, False]
    arguments = [t.bfloat16() if isinstance(t, torch.Tensor) and t is not sizes else t for t in arguments]
    losing(1, -1)
    y = emulated["recurrent"](*arguments, False)[0]
    assert emulated_run()["team"] == "cluster"
    assert y[:6, H:].isnan().all()  # the reverse direction's last steps, and with them the third row's
    assert ops_of.take_failure()


def test_a_mbarrier_of_a_lost_block_counts_on_for_many_steps(emulated, losing):
    """What others go on sending would overflow its count of bytes, which the emulation does not let pass."""
    T, H = 540, 257
    weights = [draw(H, 1), draw(H, H).mul(0.03), None, None, None, *[None] * 5]
    arguments = ["rnn_tanh", draw(T, 1, 1), draw(1, 1, H), None, *weights, None, False]
    arguments = [t.bfloat16() if isinstance(t, torch.Tensor) else t for t in arguments]
    losing(0, 1)
    y = emulated["recurrent"](*arguments, False)[0]
    assert (T - 4) / 2 * 8 * H * 2 > 1 << 20  # bytes of 8 rows, in one of two buffers
    assert y[-1].isnan().any()
    assert torch.ops.rnnfast_emulated.take_failure()
