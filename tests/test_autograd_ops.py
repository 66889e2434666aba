"""The raw ops inside torch's autograd: opcheck, finite differences, forward gradients refused."""

import pytest
import torch
from autograd_helpers import MARKS, ops
from helpers import MODES, OP_CASES, deep_transition_inputs, draw, op_inputs
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.torch_version import TorchVersion

pytestmark = MARKS

each_op_case = pytest.mark.parametrize("case", OP_CASES)
DEEP_CASES = {"depth_3": {}, "depth_1": {"depth": 1}, "no_bias": {"bias": False}}


def backward_inputs(case):
    """Arguments of recurrent_backward after a real forward; the incoming gradients ask for gradients too."""
    mode, options = OP_CASES[case]
    mode, x, h0, c0, *weights, batch_sizes, batch_first = op_inputs(mode, steps=2, **options)
    with torch.no_grad():
        y, hn, cn, gates, cells, _ = ops.recurrent(mode, x, h0, c0, *weights, batch_sizes, batch_first, True)
    dy, dhn = (draw(*t.shape, seed=50 + i).requires_grad_() for i, t in enumerate((y, hn)))
    dcn = draw(*cn.shape, seed=60).requires_grad_() if mode == "lstm" else None
    needs = [t is not None for t in (x, h0, c0, *weights, None, None)]
    return dy, dhn, dcn, mode, x, h0, c0, *weights, batch_sizes, batch_first, y, gates, cells, needs


def deep_backward_inputs(case):
    args = deep_transition_inputs(steps=2, **DEEP_CASES[case])
    with torch.no_grad():
        y, hn, acts = ops.deep_transition(*args, True)
    dy, dhn = draw(*y.shape, seed=50).requires_grad_(), draw(*hn.shape, seed=51).requires_grad_()
    return dy, dhn, *args, y, acts, True, True


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
# For an op whose derivative is torch.func.vjp of the reference: torch 2.11 cannot trace it inside a backward.
OPCHECKS_BACKWARD = OPCHECKS[: 4 if TorchVersion(torch.__version__) >= (2, 13) else 3]


@each_op_case
def test_recurrent_passes_opcheck(case):
    mode, options = OP_CASES[case]
    torch.library.opcheck(ops.recurrent.default, (*op_inputs(mode, **options), True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recurrent_passes_opcheck_without_saving(mode, dtype):
    torch.library.opcheck(ops.recurrent.default, (*op_inputs(mode, grad=False, dtype=dtype), False))


@each_op_case
def test_recurrent_backward_passes_opcheck(case):
    torch.library.opcheck(ops.recurrent_backward.default, backward_inputs(case), test_utils=OPCHECKS_BACKWARD)


@pytest.mark.parametrize("case", DEEP_CASES)
def test_deep_transition_passes_opcheck(case):
    torch.library.opcheck(ops.deep_transition.default, (*deep_transition_inputs(**DEEP_CASES[case]), True))


@pytest.mark.parametrize("case", DEEP_CASES)
def test_deep_transition_backward_passes_opcheck(case):
    torch.library.opcheck(
        ops.deep_transition_backward.default, deep_backward_inputs(case), test_utils=OPCHECKS_BACKWARD
    )


def run_recurrent(args):
    """The op as a function of the leaves that ask for gradients, and these leaves."""
    places = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.requires_grad]

    def run(*values):
        full = list(args)
        for place, value in zip(places, values, strict=True):
            full[place] = value
        return ops.recurrent(*full, True)[: 3 if args[0] == "lstm" else 2]

    return run, tuple(args[i] for i in places)


@each_op_case
def test_gradients_of_the_op_equal_finite_differences(case):
    mode, options = OP_CASES[case]
    run, inputs = run_recurrent(op_inputs(mode, **options))
    assert gradcheck(run, inputs)


@each_op_case
def test_second_gradients_of_the_op_equal_finite_differences(case):
    mode, options = OP_CASES[case]
    run, inputs = run_recurrent(op_inputs(mode, **options))
    assert gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("case", DEEP_CASES)
def test_both_gradients_of_deep_transition_equal_finite_differences(case):
    x, h0, weights, biases, slope = deep_transition_inputs(**DEEP_CASES[case])
    depth = len(weights)

    def run(x, h0, *w):
        return ops.deep_transition(x, h0, list(w[:depth]), list(w[depth:]), slope, True)[:2]

    assert gradcheck(run, (x, h0, *weights, *biases))
    assert gradgradcheck(run, (x, h0, *weights, *biases), fast_mode=True)


@pytest.mark.parametrize("case", OP_CASES)
def test_the_raw_op_refuses_every_tensor_that_carries_a_forward_gradient(case):
    # through an op with a registered autograd the tangent would vanish without a word
    mode, options = OP_CASES[case]
    args = op_inputs(mode, grad=False, **options)
    for place, value in enumerate(args):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            with forward_ad.dual_level():
                dual = list(args)
                dual[place] = forward_ad.make_dual(value, torch.ones_like(value))
                with pytest.raises(RuntimeError, match="forward"):
                    ops.recurrent(*dual, False)


@pytest.mark.parametrize("part", ["x", "h0", "weights", "biases"])
def test_the_raw_deep_transition_op_refuses_a_forward_gradient(part):
    x, h0, weights, biases, slope = deep_transition_inputs(grad=False)
    with forward_ad.dual_level():
        args = {"x": x, "h0": h0, "weights": weights, "biases": biases}
        if part in ("x", "h0"):
            args[part] = forward_ad.make_dual(args[part], torch.ones_like(args[part]))
        else:
            args[part] = [
                *args[part][:-1],
                forward_ad.make_dual(args[part][-1], torch.ones_like(args[part][-1])),
            ]
        with pytest.raises(RuntimeError, match="forward"):
            ops.deep_transition(*args.values(), slope, False)
