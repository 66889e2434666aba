"""The peers of one case, with the same weights and input: torch.nn, loops, other libraries, rnnfast."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from .. import _C
from .. import nn as fast
from .. import reference as plain
from .case import Case, asking
from .rounds import compare
from .sessions import SESSIONS, cannot

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

    def __init__(
        self, inputs: int, hidden: int, layers: int = 1, *, cell: str, bidirectional: bool = False, **more
    ):
        super().__init__()
        self.layer = getattr(fast, cell)(inputs, hidden, layers, bidirectional=bidirectional, **more)
        self.directions = 1 + bidirectional

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, None]:
        mode, weights = self.layer.mode.lower(), self.layer.all_weights
        for first in range(0, len(weights), self.directions):
            both = [w for direction in weights[first:][: self.directions] for w in (*direction, None)]
            h0 = x.new_zeros(self.directions, x.shape[1], self.layer.hidden_size)
            c0 = torch.zeros_like(h0) if _C.cells()[mode]["has_cell"] else None
            if state is not None:  # one layer
                h0, c0 = state if isinstance(state, tuple) else (state, None)
            x, *_ = plain.recurrent(mode, x, h0, c0, *both)
        return x, None


def options(case: Case) -> dict[str, object]:
    """What a layer is made with, beside its sizes."""
    more = {"nonlinearity": case.nonlinearity} if case.cell == "RNN" else {}
    return {"bidirectional": case.directions == 2, **more}


class CellLoop(nn.Module):
    """The Python loop over nn.*Cell with the weights of `layer`: x [T, B, I] -> [T, B, D H]."""

    def __init__(self, layer: nn.RNNBase):
        super().__init__()
        self.directions = 1 + layer.bidirectional
        kind = getattr(nn, type(layer).__name__ + "Cell")
        self.cells = nn.ModuleList()
        for weights in layer.all_weights:
            more = {"nonlinearity": layer.nonlinearity} if kind is nn.RNNCell else {}
            cell = kind(weights[0].shape[1], layer.hidden_size, **more).to(weights[0])
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
            layer = kind(inputs, hidden, case.layers, **options(case))
            lead = (steps, batch)
        x, dy = torch.randn(*lead, inputs), torch.randn(*lead, hidden * case.directions)
        if case.steps == 1:
            shape = (batch, hidden) if is_cell else (case.layers * case.directions, batch, hidden)
            state = torch.randn(shape).tanh()
            state = (state, torch.randn(shape)) if "LSTM" in case.cell else state
        if case.lengths:
            dy *= (torch.arange(steps)[:, None] < torch.tensor(case.lengths))[:, :, None]
        return cls(case, layer, x, state, dy).to(getattr(torch, case.dtype))

    def to(self, where: torch.dtype | str) -> Problem:
        """The same numbers in another type, or on another device."""
        state = self.state
        if state is not None:
            state = tuple(s.to(where) for s in state) if isinstance(state, tuple) else state.to(where)
        layer = copy.deepcopy(self.layer).to(where)
        return Problem(self.case, layer, self.x.to(where), state, self.dy.to(where))

    def pack(self, padded: Tensor) -> Tensor:
        """[T, B, F] -> the rows that are real [N, F]."""
        return pack_padded_sequence(padded, self.case.lengths).data if self.case.lengths else padded

    def rows(self) -> Tensor | PackedSequence:
        """x as a layer takes it."""
        if not self.case.lengths:
            return self.x
        return PackedSequence(self.pack(self.x), torch.tensor(self.case.batch_sizes))

    def ours(self) -> nn.Module:
        """rnnfast's layer with the same weights."""
        case, kind = self.case, getattr(fast, self.case.cell)
        theirs = self.layer.layer if isinstance(self.layer, ReferenceLoop) else self.layer
        with torch.inference_mode(False):  # in which freeze takes no weights
            layer = (
                kind(case.input_size, case.hidden, case.layers, **options(case))
                if issubclass(kind, nn.RNNBase)
                else kind(case.input_size, case.hidden)
            )
            layer.to(self.x).load_state_dict(theirs.state_dict())
        return fast.freeze(layer.eval()) if case.frozen else layer


@dataclass
class Peer:
    """`call()` does the timed work; `compare` brings its results to the layout all peers are compared in.

    precision: as in a Case.
    """

    call: Callable[[], tuple[Tensor, ...]]
    compare: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = tuple
    precision: str = "none"

    def asked_for(self, precision: str) -> Peer:
        """The same, asked for so much."""

        def call() -> tuple[Tensor, ...]:
            with asking(precision):
                return self.call()

        return Peer(call, self.compare, precision)


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
        unwrap = isinstance(layer, fast.DeepTransitionRNN)
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
    peer = torch_peers(problem, training)[name]()
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


def torch_peers(problem: Problem, training: bool) -> dict[str, Callable[[], Peer]]:
    """What makes each of the peers in plain torch, the baseline first."""
    case, layer, x, dy = problem.case, problem.layer, problem.x, problem.dy

    def alone() -> Peer:
        call, tensors = as_forward(layer, problem), (problem.pack(x), problem.pack(dy))
        return Peer(timed_call(call, layer, *tensors, training, case.fresh_weights))

    def by_steps() -> Peer:
        loop = CellLoop(layer)
        call = partial(loop, state=problem.state)
        return Peer(timed_call(call, loop, x, dy, training, case.fresh_weights))

    peers = {baseline(case): alone}
    if case.lengths:
        peers["torch.nn padded"] = lambda: padded(layer, problem, training)
    elif isinstance(layer, nn.RNNBase):
        peers["Python loop"] = by_steps
    return peers


ALL_OF_FLOAT32 = "rnnfast ieee"  # the peer that is not asked for less


def our_peers(problem: Problem, training: bool) -> dict[str, Callable[[], Peer]]:
    """The same of rnnfast's."""
    case, layer = problem.case, cache(problem.ours)

    def alone() -> Peer:
        call, tensors = as_forward(layer(), problem), (problem.pack(problem.x), problem.pack(problem.dy))
        return Peer(timed_call(call, layer(), *tensors, training, case.fresh_weights))

    peers = {"rnnfast padded": lambda: padded(layer(), problem, training)} if case.lengths else {}
    if case.precision != "none":
        peers[ALL_OF_FLOAT32] = lambda: alone().asked_for("ieee")
    return peers | {"rnnfast": alone}


def session_peers(
    problem: Problem, training: bool, threads: int, names: Iterable[str]
) -> dict[str, Callable[[], Peer]]:
    """The same of the other libraries among `names`, where they can do the case."""

    def alone(name: str) -> Peer:
        session = SESSIONS[name](problem.layer, problem.state, threads)
        return Peer(timed_call(session, None, problem.x, problem.dy, training), precision=session.precision)

    return {} if cannot(problem.case, training) else {name: partial(alone, name) for name in names}


def makers(
    problem: Problem, training: bool, threads: int, others: Iterable[str] = ("onnxruntime",)
) -> dict[str, Callable[[], Peer]]:
    """What makes every peer that has this case, baseline first, rnnfast last; `others` of other libraries."""
    sessions = session_peers(problem, training, threads, others)
    makes = torch_peers(problem, training) | sessions | our_peers(problem, training)
    precision = problem.case.precision
    if precision == "none":
        return makes
    as_they_are = {*sessions, ALL_OF_FLOAT32}

    def asked(name: str) -> Peer:
        peer = makes[name]()
        return peer if name in as_they_are else peer.asked_for(precision)

    return {name: partial(asked, name) for name in makes}


def all_peers(problem: Problem, training: bool, threads: int, **more: Iterable[str]) -> dict[str, Peer]:
    """They themselves."""
    return {name: make() for name, make in makers(problem, training, threads, **more).items()}


def first_calls(
    problem: Problem, training: bool, peers: dict[str, Peer]
) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Of each peer the seconds of its first call, and its largest error; and who is too far off."""
    exact, results, first = reference(problem, training), {}, {}
    for name, peer in peers.items():
        outputs, first[name] = first_outcome(peer, problem.case)
        results[name] = peer.compare(outputs)
    precisions = {name: peer.precision for name, peer in peers.items()}
    return first, *compare(results, exact, baseline(problem.case), precisions)
