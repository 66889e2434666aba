"""What the CUDA ops do around their kernels: products in chunks, and what a captured graph takes."""

import pytest
import torch
from cuda_helpers import MARKS, emulated_run, resident_case
from helpers import draw

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS


@pytest.mark.parametrize("kernel", ["stepwise", "resident"])
@pytest.mark.parametrize("seed", range(13))
def test_input_products_in_chunks_change_nothing(emulated, kernel, seed):
    ops_of = torch.ops.rnnfast_emulated
    arguments, _, _ = resident_case(seed)
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    ops_of.set_kernel(kernel)
    expected = emulated["recurrent"](*arguments, True)
    # two steps of the whole batch, or one of both directions
    ops_of.set_chunk_bytes(2 * 4 * arguments[4].size(0) * arguments[2].size(1))
    found = emulated["recurrent"](*arguments, True)
    ops_of.set_chunk_bytes(64 << 20)
    ops_of.set_kernel("")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_deep_transition_in_chunks_changes_nothing(emulated, steps):
    ops_of = torch.ops.rnnfast_emulated
    weights = [draw(5, 7).mul(0.3), draw(4, 5).mul(0.3)]
    arguments = [draw(3, 5, 3), draw(3, 4), weights, [], 0.1, True]
    expected = emulated["deep_transition"](*arguments)
    ops_of.set_chunk_bytes(steps * 8 * 5 * 3)
    found = emulated["deep_transition"](*arguments)
    ops_of.set_chunk_bytes(64 << 20)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_graph_of_a_packed_sequence_takes_what_it_can_replay(emulated):
    ops_of = torch.ops.rnnfast_emulated
    cases = (arguments for arguments, dtype, _ in map(resident_case, range(78)) if dtype == torch.float32)
    case = next(c for c in cases if c[-2] is not None and len(c[-2]) > 1 and c[5].size(1) >= 64)
    torch.backends.cudnn.rnn.fp32_precision = "tf32"  # so that one can tell the two apart
    ops_of.set_kernel("resident")  # as long as choose_plan is asked
    expected = emulated["recurrent"](*case, False)[0]
    ops_of.set_capturing(True)
    found = emulated["recurrent"](*case, False)[0]
    ops_of.set_capturing(False)
    ops_of.set_kernel("stepwise")
    stepwise = emulated["recurrent"](*case, False)[0]
    ops_of.set_kernel("")
    assert torch.equal(found, stepwise)
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("capability, H, team", [(90, 40, "block"), (90, 130, "cluster"), (80, 130, "grid")])
def test_a_graph_of_equal_lengths_takes_the_resident_kernel(emulated, capability, H, team):
    ops_of = torch.ops.rnnfast_emulated
    ops_of.set_device(capability, 132)
    arguments, _, numbers = resident_case(0, H)
    arguments[1], arguments[-2:] = numbers(2, 1, arguments[4].size(1)), [None, False]
    arguments[2:4] = [state[:, :1] for state in arguments[2:4]]
    expected = emulated["recurrent"](*arguments, False)[0]
    ops_of.set_capturing(True)
    found = emulated["recurrent"](*arguments, False)[0]
    ops_of.set_capturing(False)
    ops_of.set_device(0, 0)
    assert (emulated_run()["kernel"], emulated_run()["team"]) == ("resident", team)
    assert torch.equal(found, expected)
