"""Which path a call takes: a kernel directly, the op, plain torch, or torch's own operators.

An op cannot follow functorch transforms and forward-mode AD (one with a registered autograd gives zero
tangents there, without a warning): these take `reference`, as complex numbers do. A trace and
call_for_per_sample_grads know torch's operators only.
"""

import contextlib
import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from . import _autocast, _by_torch, _episodes, ops, reference
from .ops import CELLS

NO_WEIGHTS = (None, None, None, None, None)
NOTHING: dict = {}  # given by name
ONE_BY_ONE = contextlib.nullcontext()


class Options(NamedTuple):
    """What stays the same between the calls of a layer."""

    bidirectional: bool = False  # of each layer's two lists of weights the second reads from the end
    batch_first: bool = False  # x and y are [B, T, ...], not [T, B, ...]; packed input has neither
    dropout: float = 0.0  # how likely an element of every layer's output but the last is zeroed, in training
    training: bool = False


def layers(mode, x, h0, c0, weights, options, batch_sizes, episodes=None):
    """All layers of one kind -> y, h_n, c_n; arguments as `functional.lstm`, c_n [0] for a cell without c.

    With episodes.all_states also h and c of every step, [L·D, T, B, P] and [L·D, T, B, H] in x's layout.
    """
    bidirectional, batch_first, dropout, training = options
    has_cell = CELLS[mode]["has_cell"]
    D = 2 if bidirectional else 1
    L = len(weights) // D
    if not L or L * D != len(weights):
        raise RuntimeError(f"weights must hold {D} list(s) a layer, got {len(weights)} in all")
    packed = batch_sizes is not None
    batch_first = batch_first and not packed
    T = (batch_sizes if packed else x).size(1 if batch_first else 0)
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    weights = [_five(w) for w in weights]
    W_ih, W_hh, _, _, W_hr = weights[0]
    if x.device != W_ih.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {x.device} and parameter tensor at {W_ih.device}"
        )
    # what an export to ONNX does not find recorded here it makes of the op, see `_decompositions`
    by_torch = (
        torch.jit.is_tracing()
        or _by_torch.are_expanded(weights)
        or (torch.onnx.is_in_onnx_export() and _by_torch.can_be_exported(mode, T, batch_sizes, W_hr))
    )
    initial, all_states = None, False
    if episodes is not None:
        initial, all_states = episodes.initial, episodes.all_states
        shape = None if packed else (x.shape[:2], 0 if batch_first else 1)
        _episodes.check(episodes, x, shape, bidirectional, packed)
        if by_torch and (episodes.lengths is not None or episodes.resets is not None or all_states):
            raise RuntimeError(
                "lengths, resets and return_all_states: a trace, an export to ONNX of another kind than "
                "dynamo=True and call_for_per_sample_grads know torch's operators only, which have none"
            )
    given = h0 is not None or initial is not None
    if h0 is not None:
        if x.device != h0.device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, "
                f"found input tensor at {x.device} and hidden tensor at {h0.device}"
            )
    else:
        if not packed:
            B = x.size(0 if batch_first else 1)
        else:  # an int is what a trace would keep for good
            B = batch_sizes[0] if by_torch else batch_sizes[0].item()
        n = L * D if by_torch else D  # one state of zeros serves every layer, but torch's operator takes all
        if given:
            h0, c0 = (s if s is None else s.expand(-1, B, -1) for s in initial)
        else:
            h0 = torch.zeros(n, B, W_hh.shape[1], dtype=x.dtype, device=x.device)
            if has_cell:
                c0 = h0 if W_hr is None else torch.zeros(n, B, W_hr.shape[1], dtype=x.dtype, device=x.device)
    if by_torch:
        return _by_torch.layers(mode, x, h0, c0, weights, options, batch_sizes)
    hs = h0.split(D) if given and L > 1 else [h0] * L
    cs = c0.split(D) if given and L > 1 and c0 is not None else [c0] * L
    state = h0 if c0 is None else c0
    anew = None
    if episodes is not None and episodes.resets is not None:
        units = W_hh.shape[1], W_hh.shape[1] if W_hr is None else W_hr.shape[1]
        _episodes.check_states(episodes, L * D, h0.size(1), units, x)
        anew = episodes.reset_state or initial
    amp = _autocast.dtype_for(x)
    if amp is not None:
        x, *hs = _autocast.cast(amp, x, *hs)
        cs = _autocast.cast(amp, *cs)
        weights = [_autocast.cast(amp, *w) for w in weights]
        anew = anew and _autocast.cast(amp, *anew)

    # torch draws dropout over [T, B, D·H] in memory order: inner layers then run time first, so that a seed
    # gives torch's masks. The layout is turned by views; the last layer writes the caller's.
    drop = training and dropout > 0 and L > 1
    plain = _transformed() or x.is_complex()
    turned = drop and batch_first
    if turned:
        x = x.transpose(0, 1)
    how = None if episodes is None else _episodes.of_layers(episodes, anew, L, D, turned)
    hn, cn, every_h, every_c = [], [], [], []
    alone = L == 1 or not x.is_cuda or bidirectional or packed or drop or plain
    if alone or torch.compiler.is_compiling():
        together = ONE_BY_ONE
    else:
        read = [x, *hs, *cs, *itertools.chain.from_iterable(weights), *((anew or ()) if how else ())]
        together = _side_by_side(L, read)
    with together:
        for k in range(L):
            last = k == L - 1
            if last and turned:
                x = x.transpose(0, 1)
            w = (*weights[k * D], *(weights[k * D + 1] if bidirectional else NO_WEIGHTS))
            first = batch_first and (last or not turned)
            x, h, c, c_of_steps = _layer(mode, x, hs[k], cs[k], w, batch_sizes, first, plain, how and how[k])
            if all_states:
                turn = first != batch_first
                every_h.append(_by_direction(x, D, turn))
                if has_cell:
                    every_c.append(_by_direction(c_of_steps, D, turn))
            if drop and not last:
                x = F.dropout(x, dropout, True)
            hn.append(h)
            cn.append(c)
    y, h, c = x, hn[0] if L == 1 else torch.cat(hn), cn[0] if L == 1 else torch.cat(cn)
    # What comes out of a product is in autocast's dtype: an Elman cell's h, a projected h. With more than one
    # gate the new state is mixed with the old one, which has kept its dtype. But torch's LSTM, where it is
    # neither packed nor projected, is one operator, cast as a whole.
    gated = CELLS[mode]["gates"] > 1
    if amp is not None and gated and (not has_cell or packed or W_hr is not None):
        dtype = _autocast.state_dtype(state, amp)
        c = c.to(dtype)
        if W_hr is None:
            y, h = y.to(dtype), h.to(dtype)
    if not all_states:
        return y, h, c
    # of the dtypes that y and c_n have
    return y, h, c, torch.cat(every_h).to(y.dtype), torch.cat(every_c).to(c.dtype) if has_cell else None


@contextlib.contextmanager
def _side_by_side(L, tensors):
    """Within it layers on a GPU run beside each other, as far as they can; nobody may read what they give.

    tensors: x, and all that the layers read beside it, Nones among them.
    """
    opened = False
    try:
        opened = ops.open_stack(L, tensors)
        yield
    finally:
        if opened:
            ops.close_stack()


def _by_direction(steps, D, turn):
    """[..., D·P] of every step -> [D, ..., P], where `turn` with the first two dimensions changed over."""
    of_each = steps.unflatten(-1, (D, -1)).movedim(-2, 0)
    return of_each.transpose(1, 2) if turn else of_each


def deep_transition(x, h0, weights, biases, negative_slope):
    """As `functional.deep_transition`, of a batch: x [B, T, I], h0 [B, H] or None; biases [] for none."""
    if x.size(1) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if h0 is None:
        h0 = torch.zeros(x.size(0), weights[-1].size(0), dtype=x.dtype, device=x.device)
    amp = _autocast.dtype_for(x)
    if amp is not None:
        x, h0, *w = _autocast.cast(amp, x, h0, *weights, *biases)
        weights, biases = w[: len(weights)], w[len(weights) :]
    if _transformed() or x.is_complex():
        return reference.deep_transition(x, h0, weights, biases, negative_slope)
    if torch.jit.is_tracing():  # an export to ONNX of another kind takes the op apart, see `_decompositions`
        return _by_torch.deep_transition(x, h0, weights, biases, negative_slope)
    save = torch.is_grad_enabled() and _any_needs_grad(x, h0, *weights, *biases)
    return ops.deep_transition(x, h0, weights, biases, negative_slope, save)[:2]


def step(mode, x, h, c, w_ih, w_hh, b_ih, b_hh):
    """One step of a cell: x [B, I], h [B, H], c [B, H] or None -> h', c' ([0] for a cell without c).

    It is the layer's op with T = 1.
    """
    state = h if c is None else c
    amp = _autocast.dtype_for(x)
    if amp is not None:
        x, h, c, w_ih, w_hh, b_ih, b_hh = _autocast.cast(amp, x, h, c, w_ih, w_hh, b_ih, b_hh)
    if c is not None:
        c = c.unsqueeze(0)
    w = (w_ih, w_hh, b_ih, b_hh, None, *NO_WEIGHTS)
    # torch allows a cell without inputs or without units: nothing is multiplied, so there is nothing to fuse.
    plain = _transformed() or _recorded() or x.is_complex() or 0 in w_ih.shape
    _, h, c, _ = _layer(mode, x.unsqueeze(0), h.unsqueeze(0), c, w, None, False, plain)
    h = h.squeeze(0)
    if CELLS[mode]["has_cell"]:
        c = c.squeeze(0)
    if amp is not None and CELLS[mode]["gates"] > 1:  # as in `layers`, but step by step the LSTM too
        dtype = _autocast.state_dtype(state, amp)
        h, c = h.to(dtype), c.to(dtype)
    return h, c


def _layer(mode, x, h0, c0, w, batch_sizes, batch_first, plain, episodes=None):
    """One layer, by the op or in plain torch -> y, h_n, c_n, c of every step, if that is asked for.

    w: five of each direction. episodes: lengths, resets, reset_h, reset_c and all_states of the op, or None.
    """
    if plain:
        more = dict(zip((*ops.EPISODES, "all_states"), episodes or (), strict=False))
        how = {"batch_sizes": batch_sizes, "batch_first": batch_first}
        return reference.recurrent(mode, x, h0, c0, *w, **how, **more)
    if episodes is None:
        save = torch.is_grad_enabled() and _any_needs_grad(x, h0, c0, *w)
        made = ops.recurrent(mode, x, h0, c0, *w, batch_sizes, batch_first, save)
    else:
        save = torch.is_grad_enabled() and _any_needs_grad(x, h0, c0, *w, *episodes[2:4])
        made = ops.recurrent(mode, x, h0, c0, *w, batch_sizes, batch_first, save, *episodes)
    return made[0], made[1], made[2], made[5]


def try_cell(mode, parameters, x, h, c, frozen=None, given=NOTHING):
    """One step of a cell, without a detour through Python -> h', or (h', c') for LSTM; or None.

    x [B, I] and h, c [B, H], or without B; None is zeros. given: a dict of what the caller was given by name,
    resets and reset_state. None comes back for whatever needs more than plain
    float tensors (and for every error): then `step` is to be called.
    """
    if torch.compiler.is_dynamo_compiling():
        return None
    return ops.try_cell(mode, parameters, x, h, c, frozen, given)


def try_layers(mode, parameters, x, h, c, how, frozen=None, given=NOTHING, initial=None):
    """A module's layers, in one direction or both, likewise -> (y, h_n, c_n or None); or None, as `try_cell`.

    how: (bias, batch_first, number of layers, whether in both directions).
    frozen: a tuple with what `freeze` returned for each layer and direction in turn, or None.
    initial: what a call without states begins from, (h_0, c_0 or None), each [L·D, 1, .]; or None, zeros.
    """
    if torch.compiler.is_dynamo_compiling():
        return None
    return ops.try_layers(mode, parameters, x, h, c, how, frozen, given, initial)


def freeze(mode, w_ih, w_hh):
    """The weights of one direction of a layer, packed once: `frozen` of `try_cell` and `try_layers`.

    mode is that of `layers`; w_ih [G·H, I] and w_hh [G·H, H], of one dtype, on the CPU, G gates. As long
    as these are the tensors of a call that records no graph, and torch counts no change of them (`_version`,
    their place in memory), it reads the packed ones; else the weights themselves.
    """
    return ops.freeze(mode, w_ih, w_hh)


def _five(w):
    """[w_ih, w_hh], with the biases, with w_hr, or with both -> (w_ih, w_hh, b_ih, b_hh, w_hr)."""
    n = len(w)
    if n == 4:
        return (*w, None)
    if n == 5:
        return w
    if n == 2:
        return (*w, None, None, None)
    if n == 3:
        return (w[0], w[1], None, None, w[2])
    raise RuntimeError(f"a layer and direction has 2 to 5 weights (w_ih, w_hh, b_ih, b_hh, w_hr), got {n}")


def _any_needs_grad(*tensors):
    for t in tensors:
        if t is not None and t.requires_grad:
            return True
    return False


def _transformed():
    """Whether a torch.func transform or a forward-mode AD level is open; the ops cannot follow either."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _recorded():
    """Whether a graph of torch's own operators is being made: torch.jit.trace, or an export to ONNX."""
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def explain(
    layer: str,
    x: Tensor,
    states: list[Tensor | None],
    weights: list[Tensor | None],
    rows: int,
    units: int,
    steps: int,
) -> str:
    """One sentence: which path `layer` takes for x, with these states and weights, and why.

    rows: of its fullest step; units: of h, the projected one of an LSTM that has it; steps: of the call.
    """
    from . import info  # not before: `python -m rnnfast.info` is the first to load it

    plain = "plain torch (rnnfast.reference)"
    if _transformed():
        return f"{layer}: {plain}, because a torch.func transform or forward-mode AD is active."
    if _recorded():
        return f"{layer}: torch's own operators, because a trace or an export to ONNX is being made."
    if x.is_complex():
        return f"{layer}: {plain}, because x is complex."
    if 0 in weights[0].shape:
        return f"{layer}: {plain}, because it has no inputs or no units."
    device = x.device.type
    if device == "meta":
        return f"{layer}: no kernel, because tensors on the meta device have shapes only."
    cuda = device == "cuda" and ops._C.build_info()["cuda"]
    if device != "cpu" and not cuda:
        return f"{layer}: cannot run, because this build has no kernel for {device} tensors."
    kernel = "CUDA kernel" if cuda else "CPU kernel"
    isa = "" if cuda else f", instruction set {ops._C.isa()}"
    dtype = _autocast.dtype_for(x)
    products = 0 if cuda or (dtype or x.dtype) != torch.float32 else info.products(rows, units, steps)
    how = f" by {info.PRODUCTS[products]}" if products else ""
    dtype = f"{x.dtype}" if dtype is None else f"{dtype} (autocast)"
    needed = torch.is_grad_enabled() and _any_needs_grad(x, *states, *weights)
    why = "some input needs a gradient" if needed else "no input needs a gradient or grad mode is off"
    return (
        f"{layer}: fused {kernel}, {dtype}{how}{isa}, "
        f"{'saving' if needed else 'not saving'} activations for backward, because {why}."
    )
