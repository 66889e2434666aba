"""A layer of torch.nn's in other libraries, as a chain of standard ONNX operators: onnxruntime, OpenVINO.

They are imported when they are asked for: none of them is needed.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from .case import Case

# ONNX's gates by torch's positions: i o f c; z r h
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def needs(name: str) -> list[str]:
    """Packages that a session of this library needs and that are not installed."""
    packages = "onnx", SESSIONS[name].package
    return [package for package in packages if importlib.util.find_spec(package) is None]


def cannot(case: Case, training: bool) -> str:
    """Why no session can do this case, or ""."""
    if training:
        return "it only infers"
    if case.cell not in GATES:
        return f"ONNX has no {case.cell}"
    if case.dtype != "float32":
        return f"its layers are not of {case.dtype}"
    if case.lengths:
        return "it takes no packed rows"
    return "its weights are constants" if case.fresh_weights else ""


def onnx_model(layer: nn.RNNBase, state: tuple[str, ...]) -> bytes:
    """x [T, B, I] "y0", and h0 and c0 where `state` names them -> [T, B, D H]."""
    import numpy
    from onnx import TensorProto, checker, helper, numpy_helper

    kind, directions = type(layer).__name__, 1 + layer.bidirectional
    if directions == 1:
        constants = [numpy_helper.from_array(numpy.array([1]), "side")]
    else:
        constants = [numpy_helper.from_array(numpy.array([0, 0, -1]), "flat")]
    options = {"hidden_size": layer.hidden_size, "direction": ("forward", "bidirectional")[directions - 1]}
    if kind == "GRU":
        options["linear_before_reset"] = 1
    if kind == "RNN":
        options["activations"] = [layer.nonlinearity.capitalize()] * directions
    nodes = []

    def gates(weight: Tensor) -> Tensor:  # [G H, ...] in ONNX's order
        parts = weight.detach().cpu().chunk(len(GATES[kind]))
        return torch.cat([parts[gate] for gate in GATES[kind]])

    for index in range(layer.num_layers):
        sides = layer.all_weights[index * directions :][:directions]
        for name, parts in (("W", (0,)), ("R", (1,)), ("B", (2, 3))):  # [D, G H, I], [D, G H, H], [D, 2 G H]
            value = torch.stack([torch.cat([gates(side[part]) for part in parts]) for side in sides])
            constants.append(numpy_helper.from_array(value.numpy(), f"{name}{index}"))
        inputs = [f"y{index}", f"W{index}", f"R{index}", f"B{index}", "", *state]
        nodes.append(helper.make_node(kind, inputs, [f"all{index}"], **options))  # all: [T, D, B, H]
        if directions == 1:  # nothing to move
            nodes.append(helper.make_node("Squeeze", [f"all{index}", "side"], [f"y{index + 1}"]))
            continue
        nodes.append(helper.make_node("Transpose", [f"all{index}"], [f"side{index}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"side{index}", "flat"], [f"y{index + 1}"]))
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.FLOAT, [None] * 3) for name in ("y0", *state)]
    outputs = [value(f"y{layer.num_layers}", TensorProto.FLOAT, [None] * 3)]
    graph = helper.make_graph(nodes, "bench", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


class Session:
    """`layer` in another library: x [T, B, I] -> [T, B, D H]."""

    package: str  # that it is in
    precision = "none"  # of its products, as in a Case

    def __init__(self, layer: nn.RNNBase, state: Tensor | tuple[Tensor, ...] | None, threads: int):
        states = () if state is None else state if isinstance(state, tuple) else (state,)
        self.feed = {name: s.numpy() for name, s in zip(("h0", "c0"), states, strict=False)}
        self.start(onnx_model(layer, tuple(self.feed)), threads)

    def start(self, model: bytes, threads: int) -> None:
        raise NotImplementedError


class OnnxSession(Session):
    """In onnxruntime."""

    package = "onnxruntime"

    def start(self, model: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"y0": x.numpy(), **self.feed})[0])


class OpenVinoSession(Session):
    """In OpenVINO, told to compute in float32."""

    package, hint = "openvino", "f32"

    def start(self, model: bytes, threads: int) -> None:
        import openvino

        options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self.hint,
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = openvino.Core()
        self.request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()

    def __call__(self, x: Tensor) -> Tensor:
        # inputs are shared; the result is copied, for the next call writes in the same place
        result = self.request.infer({"y0": x.numpy(), **self.feed}, share_inputs=True)
        return torch.from_numpy(result[0])


class OpenVinoInBfloat16(OpenVinoSession):
    """In OpenVINO, as it computes unless it is told otherwise, where the processor multiplies bfloat16."""

    hint = precision = "bf16"


SESSIONS = {"onnxruntime": OnnxSession, "openvino": OpenVinoSession, "openvino-bf16": OpenVinoInBfloat16}
