"""What torch's FlopCounterMode counts for our layers: the products, as in torch's own operators."""

from functools import partial

import pytest
import torch
from autograd_helpers import input_for
from helpers import (
    CELLS,
    LAYERS,
    MODES,
    OP_CASES,
    deep_transition_inputs,
    draw,
    of_torch,
    op_inputs,
    packed,
    pair,
    tensors,
    total,
)
from torch.utils.flop_counter import FlopCounterMode

import rnnfast
from rnnfast import ops, reference

T, B, I, H, P = 5, 3, 4, 6, 3  # noqa: E741  of OP_CASES, and here of all modules
PACKED = 5 + 4 + 1  # rows of all steps, of packed input


def counted(run, *args):
    with FlopCounterMode(display=False) as counter:
        run(*args)
    return counter.get_total_flops()


def gradients(outputs, wanted):
    outputs = [t for t in tensors(outputs) if t.requires_grad]
    cotangents = [torch.ones_like(t) for t in outputs]
    return torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True)


def train(module, x):
    total(module(x)).backward()


def layer_products(mode, rows, projection=0, inputs=I):
    """Operations of the products with W_ih, W_hh and W_hr in one direction of a layer."""
    gates, state = MODES[mode]["gates"], projection or H
    return 2 * rows * gates * H * inputs, 2 * rows * gates * H * state, 2 * rows * projection * H


DENSE = {name: case for name, case in OP_CASES.items() if not case[1].get("packed")}


@pytest.mark.parametrize("mode, form", DENSE.values(), ids=DENSE)
def test_the_layer_op_counts_what_the_reference_counts(mode, form):
    *args, batch_sizes, batch_first = op_inputs(mode, **form)
    wanted = [t for t in args if isinstance(t, torch.Tensor)]
    outputs = ops.recurrent(*args, batch_sizes, batch_first, True)[:3]
    expected = reference.recurrent(*args, batch_first=batch_first)
    forward = counted(ops.recurrent, *args, batch_sizes, batch_first, True)
    assert forward == counted(partial(reference.recurrent, batch_first=batch_first), *args) > 0
    # with the gradients of all asked for, even the first state's, both make every product
    assert counted(gradients, outputs, wanted) == counted(gradients, expected, wanted) == 2 * forward


@pytest.mark.parametrize("mode, form", OP_CASES.values(), ids=OP_CASES)
def test_the_layer_op_counts_the_products_that_are_asked_for(mode, form):
    args = op_inputs(mode, **form)
    directions = 2 if form.get("bidirectional") else 1
    rows = PACKED if form.get("packed") else T * B
    by_input, by_state, projected = (directions * n for n in layer_products(mode, rows, form.get("proj", 0)))
    with torch.no_grad():
        assert counted(ops.recurrent, *args, False) == by_input + by_state + projected
    assert counted(ops.recurrent, *args, True) == by_input + by_state + projected

    outputs = ops.recurrent(*args, True)[:3]
    x, h0, _, w_ih, w_hh, *biases, w_hr = args[1:9]
    always = by_state + projected  # gradients that lead to the step before
    assert counted(gradients, outputs, [x]) == always + by_input
    assert counted(gradients, outputs, [h0]) == always
    assert counted(gradients, outputs, [w_ih]) == always + by_input // directions
    assert counted(gradients, outputs, [w_hh]) == always + by_state // directions
    if biases[0] is not None:
        assert counted(gradients, outputs, biases) == always
    if w_hr is not None:
        assert counted(gradients, outputs, [w_hr]) == always + projected // directions
    if directions == 2:
        assert counted(gradients, outputs, [args[9]]) == always + by_input // 2


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_deep_transition_counts_what_the_reference_counts(depth, bias):
    x, h0, weights, biases, slope = args = deep_transition_inputs(depth=depth, bias=bias)
    outputs, expected = ops.deep_transition(*args, True)[:2], reference.deep_transition(*args)
    forward = counted(ops.deep_transition, *args, True)
    assert forward == counted(reference.deep_transition, *args) > 0
    wanted = [x, h0, *weights]
    assert counted(gradients, outputs, wanted) == counted(gradients, expected, wanted) == 2 * forward
    of_x = 2 * T * B * weights[0].size(0) * I
    assert counted(gradients, outputs, wanted[1:]) == 2 * forward - of_x


MODULE_FORMS = {
    "plain": {},
    "two_layers_bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch_first_no_bias": {"batch_first": True, "bias": False},
    "packed": {},
}
# torch's LSTM is one operator, for which torch has no formula
AS_TORCH = {f"{k}_{form}": (k, form) for k in of_torch(LAYERS) if "lstm" not in k for form in MODULE_FORMS}
AS_TORCH |= {kind: (kind, "plain") for kind in of_torch(CELLS)}


@pytest.mark.parametrize("kind, form", AS_TORCH.values(), ids=AS_TORCH)
def test_a_module_counts_as_much_as_torchs(kind, form):
    forward, training = [], []
    for module in pair(kind, I, H, dtype=torch.float64, **MODULE_FORMS[form]):
        x = packed(5, 4, 1) if form == "packed" else input_for(kind)
        with torch.no_grad():
            forward.append(counted(module, x))
        training.append(counted(train, module, x))
    assert forward[0] == forward[1] > 0
    # ours makes the gradient of the first state too, which nobody asked for; T or B are the rows of each
    layers = 4 if form.startswith("two") else 1
    more = layers * 2 * max(T, B) * MODES[kind.removesuffix("_cell")]["gates"] * H * H
    assert training[1] <= training[0] <= training[1] + more


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
def test_an_lstm_counts_every_layer_and_direction(frozen):
    module = rnnfast.LSTM(I, H, num_layers=2, bidirectional=True)
    if frozen:
        rnnfast.freeze(module.eval())
    x = draw(T, B, I, dtype=torch.float32)
    expected = 2 * sum(layer_products("lstm", T * B) + layer_products("lstm", T * B, inputs=2 * H))
    assert counted(module, x) == expected
    with torch.no_grad():
        assert counted(module, x) == expected
