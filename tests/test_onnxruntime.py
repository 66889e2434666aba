"""An oracle that shares no code with torch: ONNX graphs of our weights, run by onnxruntime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import draw, pair
from onnx import TensorProto, helper, numpy_helper

# Where torch keeps the gates, in ONNX's order: LSTM i o f c from i f g o, GRU z r h from r z n.
GATES = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "rnn_tanh": [0], "rnn_relu": [0]}
OPERATORS = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "rnn_tanh": ("RNN", {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", {"activations": ["Relu"]}),
}
SHAPES = [(1, 1, 1, 1), (1, 3, 4, 5), (7, 1, 3, 16), (9, 4, 5, 33), (20, 6, 17, 64)]


def reordered(kind, weight):
    """Rows [G·H, ...] with the gates in ONNX's order."""
    blocks = weight.detach().chunk(len(GATES[kind]))
    return torch.cat([blocks[g] for g in GATES[kind]])


def graph(kind, module):
    """One ONNX node with our weights: X [T, B, I] and states [D, B, H] -> Y [T, D, B, H] and last states."""
    operator, attributes = OPERATORS[kind]
    directions = 2 if module.bidirectional else 1
    suffixes = ["_l0", "_l0_reverse"][:directions]

    def gathered(name):
        return torch.stack([reordered(kind, getattr(module, name + suffix)) for suffix in suffixes])

    arrays = {"W": gathered("weight_ih"), "R": gathered("weight_hh")}
    if module.bias:
        arrays["B"] = torch.cat([gathered("bias_ih"), gathered("bias_hh")], dim=1)
    states = ["h0", "c0"] if kind == "lstm" else ["h0"]
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(states)]
    if "activations" in attributes:
        attributes = {"activations": attributes["activations"] * directions}
    node = helper.make_node(
        operator,
        ["X", "W", "R", "B" if module.bias else "", "", *states],
        outputs,
        hidden_size=module.hidden_size,
        direction="bidirectional" if directions == 2 else "forward",
        **attributes,
    )

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * (4 if name == "Y" else 3))

    weights = [numpy_helper.from_array(array.numpy(), name) for name, array in arrays.items()]
    made = helper.make_graph(
        [node], kind, [value(n) for n in ["X", *states]], [value(n) for n in outputs], weights
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 14)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "T{}_B{}_I{}_H{}".format(*shape))
@pytest.mark.parametrize("kind", OPERATORS)
def test_outputs_and_states_equal_onnxruntimes(kind, shape, bidirectional, bias):
    T, B, I, H = shape  # noqa: E741
    D = 2 if bidirectional else 1
    ours, _ = pair(kind, I, H, bidirectional=bidirectional, bias=bias)
    x, h, c = (draw(*s, seed=i, dtype=torch.float32) for i, s in enumerate([(T, B, I), (D, B, H), (D, B, H)]))
    given = {"X": x.numpy(), "h0": h.numpy(), **({"c0": c.numpy()} if kind == "lstm" else {})}
    expected_y, *expected_states = graph(kind, ours).run(None, given)
    with torch.no_grad():
        y, states = ours(x, (h, c) if kind == "lstm" else h)
    # [T, D, B, H] -> [T, B, D·H]
    expected_y = np.moveaxis(expected_y, 1, 2).reshape(T, B, D * H)
    np.testing.assert_allclose(y.numpy(), expected_y, rtol=1e-4, atol=2e-6)
    for state, expected in zip(states if kind == "lstm" else [states], expected_states, strict=True):
        np.testing.assert_allclose(state.numpy(), expected, rtol=1e-4, atol=2e-6)
