"""The peers of one case, with the same weights and input: torch.nn, Python loops, onnxruntime, rnnfast."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast
from rnnfast import _C

from .cases import Case

Forward = Callable[[Tensor], Tensor]  # x -> output of every step


class DeepTransitionLoop(nn.Module):
    """The deep-transition RNN as a course writes it: x [B, T, I] -> every h [B, T, H]."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.rnn = nn.Sequential(
            nn.Linear(inputs + hidden, hidden),
            nn.LeakyReLU(),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(),
            nn.Linear(hidden, hidden),
        )

    def forward(self, x: Tensor) -> Tensor:
        h, states = x.new_zeros(x.shape[0], self.rnn[-1].out_features), []
        for step in x.unbind(1):
            h = self.rnn(torch.cat([step, h], 1))
            states.append(h)
        return torch.stack(states, 1)


class ReferenceLoop(nn.Module):
    """The Python loop for a cell that torch.nn lacks: `rnnfast.reference` with a layer's own weights."""

    def __init__(self, inputs: int, hidden: int, layers: int = 1, bidirectional: bool = False, *, cell: str):
        super().__init__()
        self.layer = getattr(rnnfast, cell)(inputs, hidden, layers, bidirectional=bidirectional)
        self.directions = 1 + bidirectional

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, None]:
        mode, weights = self.layer.mode.lower(), self.layer.all_weights
        for first in range(0, len(weights), self.directions):
            both = [w for direction in weights[first:][: self.directions] for w in (*direction, None)]
            h0 = x.new_zeros(self.directions, x.shape[1], self.layer.hidden_size)
            c0 = torch.zeros_like(h0) if _C.cells()[mode]["has_cell"] else None
            if state is not None:  # one layer
                h0, c0 = state if isinstance(state, tuple) else (state, None)
            x, *_ = rnnfast.reference.recurrent(mode, x, h0, c0, *both)
        return x, None


class CellLoop(nn.Module):
    """The Python loop over nn.*Cell with the weights of `layer`: x [T, B, I] -> [T, B, D H]."""

    def __init__(self, layer: nn.RNNBase):
        super().__init__()
        self.directions = 1 + layer.bidirectional
        kind = getattr(nn, type(layer).__name__ + "Cell")
        self.cells = nn.ModuleList()
        for weights in layer.all_weights:
            cell = kind(weights[0].shape[1], layer.hidden_size).to(weights[0].dtype)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            cell.load_state_dict(dict(zip(names, weights, strict=True)))
            self.cells.append(cell)

    def forward(self, x: Tensor, state=None) -> Tensor:
        if state is not None:  # one layer, one direction: [1, B, H] each
            state = tuple(s[0] for s in state) if isinstance(state, tuple) else state[0]
        for layer in range(0, len(self.cells), self.directions):
            both = [
                self.run(cell, x, state, bool(d))
                for d, cell in enumerate(self.cells[layer:][: self.directions])
            ]
            x = torch.cat(both, -1) if self.directions == 2 else both[0]
        return x

    @staticmethod
    def run(cell: nn.Module, x: Tensor, state, reverse: bool) -> Tensor:
        outputs = []
        for step in reversed(x.unbind(0)) if reverse else x.unbind(0):
            state = cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs[::-1] if reverse else outputs)


class OnnxSession:
    """`layer` as a chain of standard ONNX operators in onnxruntime: x [T, B, I] -> [T, B, D H]."""

    ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}  # ONNX's gates (i o f c; z r h) by torch's positions

    def __init__(self, layer: nn.RNNBase, state, threads: int):
        kind, directions, hidden = layer.mode, 1 + layer.bidirectional, layer.hidden_size
        if directions == 1:
            constants = [numpy_helper.from_array(numpy.array([1]), "side")]
        else:
            constants = [numpy_helper.from_array(numpy.array([0, 0, -1]), "flat")]
        nodes = []

        def gates(weight: Tensor) -> Tensor:  # [G H, ...] in ONNX's order
            return torch.cat(
                [weight.detach().chunk(len(self.ORDER[kind]))[gate] for gate in self.ORDER[kind]]
            )

        self.feed = {}
        if state is not None:
            self.feed = dict(zip(("h0", "c0"), state if isinstance(state, tuple) else (state,), strict=False))
        for index in range(layer.num_layers):
            sides = layer.all_weights[index * directions :][:directions]
            for name, parts in (
                ("W", (0,)),
                ("R", (1,)),
                ("B", (2, 3)),
            ):  # [D, G H, I], [D, G H, H], [D, 2 G H]
                value = torch.stack([torch.cat([gates(side[part]) for part in parts]) for side in sides])
                constants.append(numpy_helper.from_array(value.numpy(), f"{name}{index}"))
            nodes.append(
                helper.make_node(
                    kind,
                    [f"y{index}", f"W{index}", f"R{index}", f"B{index}", "", *self.feed],
                    [f"all{index}"],
                    hidden_size=hidden,
                    direction="bidirectional" if directions == 2 else "forward",
                    **({"linear_before_reset": 1} if kind == "GRU" else {}),
                )
            )  # all: [T, D, B, H]
            if directions == 1:  # nothing to move
                nodes.append(helper.make_node("Squeeze", [f"all{index}", "side"], [f"y{index + 1}"]))
                continue
            nodes.append(helper.make_node("Transpose", [f"all{index}"], [f"side{index}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"side{index}", "flat"], [f"y{index + 1}"]))
        value = helper.make_tensor_value_info
        inputs = [value(name, TensorProto.FLOAT, [None] * 3) for name in ("y0", *self.feed)]
        outputs = [value(f"y{layer.num_layers}", TensorProto.FLOAT, [None] * 3)]
        graph = helper.make_graph(nodes, "bench", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.feed = {name: tensor.numpy() for name, tensor in self.feed.items()}

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"y0": x.numpy(), **self.feed})[0])


@dataclass
class Problem:
    """What all peers of one case share."""

    case: Case
    layer: nn.Module  # the baseline: torch.nn's own, or the hand-written loop
    x: Tensor  # [T, B, I]; deep transition [B, T, I]; cells [B, I]
    state: Tensor | tuple[Tensor, Tensor] | None  # one step only: as torch.nn takes it
    dy: Tensor  # gradient of the output, of its shape; zero where a packed row has ended

    @classmethod
    def make(cls, case: Case) -> Problem:
        """A problem whose gradients are well defined.

        Where an argument of LeakyReLU is nearly 0, float32 and float64 may rightly differ on its side and so
        on the gradient: such rows get dy = 0 (the work stays); seeds that leave less than half are passed.
        """
        for seed in itertools.count():
            problem = cls.draw(case, seed)
            if case.cell != "DeepTransitionRNN":
                return problem
            clear = problem.closest_to_kink() > 2e-6  # [B]
            problem.dy *= clear[:, None, None]
            if clear.float().mean() >= 0.5:
                return problem

    @torch.no_grad()
    def closest_to_kink(self) -> Tensor:
        """The least |argument| of any LeakyReLU of each row [B], in float64."""
        exact = self.to(torch.float64)
        least = torch.full((self.case.batch,), torch.inf, dtype=torch.float64)

        def note(_, args):
            torch.minimum(least, args[0].abs().amin(1), out=least)

        for activation in exact.layer.rnn[1::2]:
            activation.register_forward_pre_hook(note)
        exact.layer(exact.x)
        return least

    @classmethod
    def draw(cls, case: Case, seed: int) -> Problem:
        torch.manual_seed(seed)
        steps, batch, inputs, hidden = case.steps, case.batch, case.input_size, case.hidden
        is_cell, state = case.cell.endswith("Cell"), None
        if case.cell == "DeepTransitionRNN":
            layer, lead = DeepTransitionLoop(inputs, hidden), (batch, steps)
        elif is_cell:
            layer, lead = getattr(nn, case.cell)(inputs, hidden), (batch,)
        else:
            kind = getattr(nn, case.cell, None) or partial(ReferenceLoop, cell=case.cell)
            layer = kind(inputs, hidden, case.layers, bidirectional=case.directions == 2)
            lead = (steps, batch)
        x, dy = torch.randn(*lead, inputs), torch.randn(*lead, hidden * case.directions)
        if case.steps == 1:
            shape = (batch, hidden) if is_cell else (case.layers * case.directions, batch, hidden)
            state = torch.randn(shape).tanh()
            state = (state, torch.randn(shape)) if "LSTM" in case.cell else state
        if case.lengths:
            dy *= (torch.arange(steps)[:, None] < torch.tensor(case.lengths))[:, :, None]
        return cls(case, layer, x, state, dy).to(getattr(torch, case.dtype))

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another type."""
        state = self.state
        if state is not None:
            state = tuple(s.to(dtype) for s in state) if isinstance(state, tuple) else state.to(dtype)
        layer = copy.deepcopy(self.layer).to(dtype)
        return Problem(self.case, layer, self.x.to(dtype), state, self.dy.to(dtype))

    def pack(self, padded: Tensor) -> Tensor:
        """[T, B, F] -> the rows that are real [N, F]."""
        return pack_padded_sequence(padded, self.case.lengths).data if self.case.lengths else padded


@dataclass
class Peer:
    """`call()` does the timed work; `compare` brings its results to the layout all peers are compared in."""

    call: Callable[[], tuple[Tensor, ...]]
    compare: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = tuple


def with_fresh_weights(forward: Forward, layer: nn.Module) -> Forward:
    """`forward` with every element of one weight changed in place before each call.

    By so much that what an earlier call kept would show in the result, and back again every third time.
    """
    weight = next(p for name, p in layer.named_parameters() if "weight_hh" in name)
    changes = itertools.cycle((1e-3, 1e-3, -2e-3))

    def changed(x: Tensor) -> Tensor:
        with torch.no_grad():
            weight.add_(next(changes))
        return forward(x)

    return changed


def timed_call(
    forward: Forward, layer: nn.Module | None, x: Tensor, dy: Tensor, training: bool, fresh: bool = False
) -> Callable:
    """Inference: (y,). Training: (y, dx, the gradient of every parameter)."""
    if fresh:
        forward = with_fresh_weights(forward, layer)
    if not training:
        return lambda: (forward(x),)
    x = x.detach().requires_grad_()
    wanted = [x, *layer.parameters()]

    def step():
        y = forward(x)
        return y.detach(), *torch.autograd.grad(y, wanted, dy)

    return step


def as_forward(layer: nn.Module, problem: Problem) -> Forward:
    """A module of torch.nn's (or ours) as x -> y, with the case's state and lengths."""
    case, state = problem.case, problem.state
    if case.cell == "LSTMCell":
        return lambda x: layer(x, state)[0]
    if case.cell in ("GRUCell", "RNNCell", "DeepTransitionRNN"):
        unwrap = isinstance(layer, rnnfast.DeepTransitionRNN)
        return (
            (lambda x: layer(x)[0]) if unwrap else (lambda x: layer(x, *([] if state is None else [state])))
        )
    if case.lengths:
        batch_sizes = torch.tensor(case.batch_sizes)
        return lambda x: layer(PackedSequence(x, batch_sizes))[0].data
    return lambda x: layer(x, state)[0]


def padded(layer: nn.Module, problem: Problem, training: bool) -> Peer:
    """A layer over all steps of all rows, as if none ended early."""
    call = timed_call(lambda x: layer(x)[0], layer, problem.x, problem.dy, training)
    return Peer(call, lambda out: (*map(problem.pack, out[:2]), *out[2:]))


def reference(problem: Problem, training: bool) -> tuple[Tensor, ...]:
    """The results in float64, by the baseline (packed: by its padded form, which is quicker and as right)."""
    problem = problem.to(torch.float64)
    name = "torch.nn padded" if problem.case.lengths else baseline(problem.case)
    peer = torch_peers(problem, training)[name]
    return peer.compare(first_outcome(peer, problem.case)[0])


def first_outcome(peer: Peer, case: Case) -> tuple[tuple[Tensor, ...], float]:
    """The outputs to compare, and the seconds of the first call.

    Where weights change they are the second call's, which would show what the first had kept.
    """
    start = time.perf_counter()
    outputs = peer.call()
    seconds = time.perf_counter() - start
    return (peer.call() if case.fresh_weights else outputs), seconds


def baseline(case: Case) -> str:
    """The peer that speed-ups are counted from."""
    return "torch.nn" if hasattr(nn, case.cell) else "Python loop"


def torch_peers(problem: Problem, training: bool) -> dict[str, Peer]:
    case, layer, x, dy = problem.case, problem.layer, problem.x, problem.dy
    call = timed_call(
        as_forward(layer, problem), layer, problem.pack(x), problem.pack(dy), training, case.fresh_weights
    )
    peers = {baseline(case): Peer(call)}
    if case.lengths:
        peers["torch.nn padded"] = padded(layer, problem, training)
    elif isinstance(layer, nn.RNNBase):
        loop = CellLoop(layer)
        peers["Python loop"] = Peer(
            timed_call(lambda x: loop(x, problem.state), loop, x, dy, training, case.fresh_weights)
        )
    return peers


def all_peers(problem: Problem, training: bool, threads: int) -> dict[str, Peer]:
    """Every peer that has this case, the baseline first, rnnfast last."""
    case = problem.case
    peers = torch_peers(problem, training)
    has_onnx = case.dtype == "float32" and case.cell in OnnxSession.ORDER and not case.lengths
    if not training and has_onnx and not case.fresh_weights:  # a session's weights are constants
        peers["onnxruntime"] = Peer(
            timed_call(OnnxSession(problem.layer, problem.state, threads), None, problem.x, problem.dy, False)
        )
    ours = getattr(rnnfast, case.cell)
    with torch.inference_mode(False):  # in which freeze takes no weights
        if issubclass(ours, nn.RNNBase):
            ours = ours(case.input_size, case.hidden, case.layers, bidirectional=case.directions == 2)
        else:
            ours = ours(case.input_size, case.hidden)
        theirs = problem.layer.layer if isinstance(problem.layer, ReferenceLoop) else problem.layer
        ours.to(problem.x.dtype).load_state_dict(theirs.state_dict())
    if case.frozen:
        rnnfast.freeze(ours.eval())
    x, dy = problem.pack(problem.x), problem.pack(problem.dy)
    if case.lengths:
        peers["rnnfast padded"] = padded(ours, problem, training)
    call = timed_call(as_forward(ours, problem), ours, x, dy, training, case.fresh_weights)
    return peers | {"rnnfast": Peer(call)}
