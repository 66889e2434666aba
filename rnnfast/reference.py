"""The cells and the time loop in plain torch, in the letters of the papers.

This is the oracle of the tests, the path under functorch and forward-mode AD, and what double backward
differentiates. Nothing here is done in place and no data-dependent value is read back, so vmap, jvp, grad
and tracing pass through. Half types compute in float: h is rounded once a step, c stays in float.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["deep_transition", "gru_cell", "lstm_cell", "recurrent", "rnn_relu_cell", "rnn_tanh_cell"]


State = TypeVar("State", Tensor, None)


def lstm_cell(u: Tensor, v: Tensor, h: Tensor, c: State) -> tuple[Tensor, State]:
    """Of one step of an LSTM what comes after the products; the formula stands in the source.

    Shapes: u = W_i x + b_i [B, G·H], v = W_h h + b_h [B, G·H], h [B, H], c [B, H] -> (h' [B, H], c' [B, H]),
    with G = 4 gates. Only the LSTM has a c; the other cells hand on what they are given.
    """
    i, f, g, o = (u + v).chunk(4, -1)
    # i = σ(W_ii x + b_ii + W_hi h + b_hi)      f = σ(W_if x + b_if + W_hf h + b_hf)
    # g = tanh(W_ig x + b_ig + W_hg h + b_hg)   o = σ(W_io x + b_io + W_ho h + b_ho)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    # c' = f ⊙ c + i ⊙ g                        h' = o ⊙ tanh(c')
    c = f * c + i * g
    return o * c.tanh(), c


def gru_cell(u: Tensor, v: Tensor, h: Tensor, c: State) -> tuple[Tensor, State]:
    """The same of a GRU, as `lstm_cell`: G = 3, c is handed on."""
    u_r, u_z, u_n = u.chunk(3, -1)
    v_r, v_z, v_n = v.chunk(3, -1)
    # r = σ(W_ir x + b_ir + W_hr h + b_hr)      z = σ(W_iz x + b_iz + W_hz h + b_hz)
    r, z = (u_r + v_r).sigmoid(), (u_z + v_z).sigmoid()
    # n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
    n = (u_n + r * v_n).tanh()
    # h' = (1 − z) ⊙ n + z ⊙ h
    return (1 - z) * n + z * h, c


def rnn_tanh_cell(u: Tensor, v: Tensor, h: Tensor, c: State) -> tuple[Tensor, State]:
    """The same of an Elman network with tanh, as `lstm_cell`: G = 1, c is handed on."""
    # h' = tanh(W_i x + b_i + W_h h + b_h)
    return (u + v).tanh(), c


def rnn_relu_cell(u: Tensor, v: Tensor, h: Tensor, c: State) -> tuple[Tensor, State]:
    """The same of an Elman network with relu, as `lstm_cell`: G = 1, c is handed on."""
    # h' = relu(W_i x + b_i + W_h h + b_h)
    return (u + v).relu(), c


CELLS = {"lstm": lstm_cell, "gru": gru_cell, "rnn_tanh": rnn_tanh_cell, "rnn_relu": rnn_relu_cell}


def compute_dtype(dtype):
    """The type that half precision is computed in: float; any other type is its own."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def walk(step, state, rows, weights, reverse=False, kept=1):
    """The loop over time: state = step(state, rows of each time, weights).

    Returns: the first `kept` tensors of the state, each of all times, and the last state.
    """
    states = []
    T = rows[0].size(0)
    for t in reversed(range(T)) if reverse else range(T):
        state = step(state, [r[t] for r in rows], weights)
        states.append(state[:kept])
    return [torch.stack(s[::-1] if reverse else s) for s in zip(*states, strict=True)], state


def recurrent(
    mode: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    *weights: Tensor | None,
    batch_sizes: Tensor | None = None,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    all_states: bool = False,
    walk: Callable[..., Any] = walk,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One recurrent layer over a whole sequence, one or both directions: what the op of this name computes.

    Args:
        mode: a name of `CELLS`.
        x: [T, B, I], or [B, T, I] if batch_first, or packed [N, I] with batch_sizes.
        h0: [D, B, P], D directions, P = proj_size or H.
        c0: [D, B, H], of an LSTM; else None.
        weights: w_ih [G·H, I], w_hh [G·H, P], b_ih [G·H], b_hh [G·H], w_hr [P, H], and as many of the reverse
            direction; None where there is none.
        batch_first: x is [B, T, I], and y alike.
        batch_sizes: int64 [T], how many rows take part in each step; never grows.
        lengths: int64 [B], how many steps each row takes part in; y is zero after them.
        resets: bool [T, B], or [B, T] if batch_first: before such a step the state of the row becomes that
            of reset_h and reset_c.
        reset_h: [D, B or 1, P]; None is zeros.
        reset_c: [D, B or 1, H]; None is zeros.
        all_states: whether c of every step is returned.
        walk: the loop over time.

    Returns:
        y of x's layout with D·P features, h_n [D, B, P], c_n [D, B, H] and c of every step, as y (each of
        size [0] unless LSTM).
    """
    dtype, acc = x.dtype, compute_dtype(x.dtype)
    weights = [w if w is None else w.to(acc) for w in weights]
    directions = [weights[:5]] if len(weights) == 5 or weights[5] is None else [weights[:5], weights[5:]]

    active = None
    if batch_sizes is not None:
        x, active, places = _unpack(x, batch_sizes, h0.size(1))
    elif batch_first:
        x = x.transpose(0, 1)
    if lengths is not None:
        times = torch.arange(x.size(0), device=x.device).unsqueeze(1)
        active = (times < lengths.to(x.device)).unsqueeze(-1)  # [T, B, 1]
        x = torch.where(active, x, 0)  # a NaN in padding would reach the gradient of W_ih
    if resets is not None:
        resets = (resets.transpose(0, 1) if batch_first else resets).unsqueeze(-1)  # [T, B, 1]

    def of(state, d):
        return None if state is None else state[d].to(acc)

    steps, hs, cs = [], [], []
    for d, direction in enumerate(directions):
        states, h, c = _direction(
            CELLS[mode],
            x.to(acc),
            [of(h0, d), of(c0, d)],
            [of(reset_h, d), of(reset_c, d)],
            direction,
            (active, resets),
            dtype,
            lambda *args, d=d: walk(*args, d == 1, 2 if all_states else 1),
        )
        steps.append(states)
        hs.append(h)
        cs.append(c)

    def joined(of_directions):
        """Of each direction [T, B, .] -> as y is returned."""
        y = torch.cat(of_directions, -1).to(dtype)
        if batch_sizes is not None:
            return y.flatten(0, 1).index_select(0, places)
        if lengths is not None:
            y = torch.where(active, y, 0)
        return y.transpose(0, 1).contiguous() if batch_first else y

    none = h0.new_empty(0)
    y, *c = (joined(of_directions) for of_directions in zip(*steps, strict=True))
    cn = none if c0 is None else torch.stack(cs).to(dtype)
    return y, torch.stack(hs).to(dtype), cn, c[0] if c else none


def _direction(cell, x, state, anew, weights, flags, dtype, walk):
    """One direction of x [T, B, I] from state h [B, P], c [B, H] or None -> [T, B, P] (and c), h, c.

    flags: of each step and row [T, B, 1] whether it takes part, and whether its state becomes anew (h and c,
    None is zeros) before; or None.
    """
    W_ih, W_hh, b_ih, b_hh, W_hr = weights
    active, resets = flags
    rows = [F.linear(x, W_ih, b_ih)]  # u [T, B, G·H]
    rows += [f for f in flags if f is not None]

    def step(state, rows, weights):
        W_hh, b_hh, W_hr, *anew = weights
        before = state
        if resets is not None:
            anew = [s.new_zeros(()) if a is None else a for s, a in zip(state, anew, strict=False)]
            before = [torch.where(rows[-1], a, s) for s, a in zip(state, anew, strict=True)]
        h, c = before if len(before) == 2 else (*before, None)
        h_new, c_new = cell(rows[0], F.linear(h, W_hh, b_hh), h, c)
        if W_hr is not None:
            h_new = F.linear(h_new, W_hr)
        h_new = h_new.to(dtype).to(h.dtype)
        new = (h_new,) if c is None else (h_new, c_new)
        if active is None:
            return new
        # a row that takes no part in this step keeps its state
        return tuple(torch.where(rows[1], n, old) for n, old in zip(new, state, strict=True))

    states, (h, *c) = walk(step, tuple(s for s in state if s is not None), rows, (W_hh, b_hh, W_hr, *anew))
    return states, h, c[0] if c else None


def _unpack(x, batch_sizes, B):
    """Packed x [N, I] -> padded [T, B, I], active [T, B, 1], and each packed row's place in [T·B].

    Shapes depend on shapes only (batch_sizes is never read back), so this also traces. Padding reads a row
    of zeros: a NaN in one sequence never reaches another.
    """
    N = x.size(0)
    batch_sizes = batch_sizes.to(x.device)
    ends = batch_sizes.cumsum(0)  # [T]
    starts = (ends - batch_sizes).unsqueeze(1)  # [T, 1]
    b = torch.arange(B, device=x.device)
    active = b < batch_sizes.unsqueeze(1)  # [T, B]
    rows = torch.where(active, starts + b, N)
    x = torch.cat([x, torch.zeros_like(x[:1])])
    x = x.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    n = torch.arange(N, device=x.device)
    first = ends[:-1]  # of every step but the first its first row
    t = torch.zeros_like(n).scatter_add(0, first, torch.ones_like(first)).cumsum(0)
    places = t * B + n - starts.squeeze(1).index_select(0, t)
    return x, active.unsqueeze(-1), places


# What the perceptron of a deep transition has of each layer. In a trace they are tuples, see `_by_torch`.
Weights = list[Tensor]
Biases = list[Tensor | None]


def transitions(
    x: Tensor, h: Tensor, weights: Weights, biases: Biases, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """The loop of `deep_transition`, in h's dtype; a bias or None for each weight. TorchScript reads it."""
    ys: list[Tensor] = []
    for t in range(x.size(1)):
        # a = [x, h];  a = leaky_relu(W_l a + b_l) for every layer but the last;  h' = W a + b
        a = torch.cat([x[:, t].to(h.dtype), h], -1)
        for k, W in enumerate(weights):
            if k > 0:
                a = F.leaky_relu(a, negative_slope)
            a = F.linear(a, W, biases[k])
        h = a.to(x.dtype).to(h.dtype)
        ys.append(h)
    return torch.stack(ys, 1), h


def deep_transition(
    x: Tensor,
    h0: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    negative_slope: float = 0.01,
    loop: Callable[..., tuple[Tensor, Tensor]] = transitions,
) -> tuple[Tensor, Tensor]:
    """The deep-transition RNN (Pascanu et al. 2013): each step is a perceptron over [x, h].

    Args:
        x: [B, T, I].
        h0: [B, H].
        weights: [W_0, I + H], [W_1, W_0], ..., [H, W]; LeakyReLU between them, nothing after the last.
        biases: one for each weight, or an empty list.
        loop: the loop over time.

    Returns:
        all states y [B, T, H], the last state h [B, H].
    """
    dtype, acc = x.dtype, compute_dtype(x.dtype)
    weights = [W.to(acc) for W in weights]
    biases = [b.to(acc) for b in biases] or [None] * len(weights)
    y, h = loop(x, h0.to(acc), weights, biases, negative_slope)
    return y.to(dtype), h.to(dtype)
