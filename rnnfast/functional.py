"""The layers as functions of tensors: which path runs, autocast, dropout between layers, several layers.

`nn` calls these; they call the ops of `ops`, or `reference` where an op cannot follow (functorch transforms
and forward-mode AD: an op with a registered autograd gives zero tangents there, without a warning).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from . import ops, reference

__all__ = ["deep_transition", "gru", "lstm", "rnn"]


def lstm(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: list[list[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Long short-term memory, one or more layers.

    .. code-block:: text

        i = σ(W_ii x + b_ii + W_hi h + b_hi)      f = σ(W_if x + b_if + W_hf h + b_hf)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)   o = σ(W_io x + b_io + W_ho h + b_ho)
        c' = f ⊙ c + i ⊙ g                        h' = o ⊙ tanh(c')

    Shapes: L layers, D directions, P = proj_size or H.

    >>> import torch, rnnfast
    >>> w = [torch.randn(12, 2), torch.randn(12, 3), torch.randn(12), torch.randn(12)]
    >>> y, (h, c) = rnnfast.functional.lstm(torch.randn(5, 4, 2), None, [w])
    >>> y.shape, h.shape, c.shape
    (torch.Size([5, 4, 3]), torch.Size([1, 4, 3]), torch.Size([1, 4, 3]))

    Args:
        x: [T, B, I], or [B, T, I] if batch_first, or packed [N, I] with batch_sizes.
        hx: h_0 [L·D, B, P] and c_0 [L·D, B, H]; None is zeros.
        weights: for each layer and direction in turn a list of w_ih [4H, I], w_hh [4H, P], b_ih [4H],
            b_hh [4H], w_hr [P, H], without the biases or w_hr where there are none:
            ``torch.nn.LSTM(...).all_weights``.
        batch_sizes: int64 [T] on the CPU, as in PackedSequence.
        dropout: probability of an element of every layer's output but the last to be zeroed, while training.

    Returns:
        y in the layout of x with D·P features, and (h_n [L·D, B, P], c_n [L·D, B, H]).

    Raises:
        RuntimeError: no time step, or shapes, dtypes or devices that do not fit.

    Source: Hochreiter and Schmidhuber 1997, Gers et al. 2000 (forget gate), Sak et al. 2014 (projection).
    """
    h, c = (None, None) if hx is None else hx
    y, h, c = layers("lstm", x, h, c, weights, bidirectional, batch_first, batch_sizes, dropout, training)
    return y, (h, c)


def gru(
    x: Tensor,
    hx: Tensor | None,
    weights: list[list[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit, one or more layers; the reset gate acts after the hidden product.

    .. code-block:: text

        r = σ(W_ir x + b_ir + W_hr h + b_hr)      z = σ(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    >>> import torch, rnnfast
    >>> w = [torch.randn(9, 2), torch.randn(9, 3), torch.randn(9), torch.randn(9)]
    >>> y, h = rnnfast.functional.gru(torch.randn(5, 4, 2), None, [w])
    >>> y.shape, h.shape
    (torch.Size([5, 4, 3]), torch.Size([1, 4, 3]))

    Args, Returns, Raises: as `lstm`, with 3H for 4H, no c and no projection.

    Source: Cho et al. 2014, in the form of cuDNN and torch.nn.
    """
    y, h, _ = layers("gru", x, hx, None, weights, bidirectional, batch_first, batch_sizes, dropout, training)
    return y, h


def rnn(
    x: Tensor,
    hx: Tensor | None,
    weights: list[list[Tensor]],
    *,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    """Elman network, one or more layers: h' = tanh or relu (W_i x + b_i + W_h h + b_h).

    >>> import torch, rnnfast
    >>> w = [torch.randn(3, 2), torch.randn(3, 3), torch.randn(3), torch.randn(3)]
    >>> y, h = rnnfast.functional.rnn(torch.randn(5, 4, 2), None, [w], nonlinearity="relu")
    >>> y.shape, h.shape
    (torch.Size([5, 4, 3]), torch.Size([1, 4, 3]))

    Args, Returns, Raises: as `lstm`, with H for 4H, no c and no projection; ValueError for a nonlinearity
    that is neither "tanh" nor "relu".

    Source: Elman 1990.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    mode = "rnn_" + nonlinearity
    y, h, _ = layers(mode, x, hx, None, weights, bidirectional, batch_first, batch_sizes, dropout, training)
    return y, h


def deep_transition(
    x: Tensor,
    h0: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor] | None = None,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Deep-transition RNN: each step is a multi-layer perceptron over [x, h].

    .. code-block:: text

        a = [x, h];  a = leaky_relu(W_l a + b_l) for every l but the last;  h' = W a + b

    >>> import torch, rnnfast
    >>> w = [torch.randn(8, 2 + 3), torch.randn(3, 8)]
    >>> y, h = rnnfast.functional.deep_transition(torch.randn(4, 5, 2), None, w)
    >>> y.shape, h.shape
    (torch.Size([4, 5, 3]), torch.Size([4, 3]))

    Args:
        x: [B, T, I], or [T, I] for a single sequence.
        h0: [B, H], or [H]; None is zeros.
        weights: [W_0, I + H], [W_1, W_0], ..., [H, W].
        biases: one for each weight, or None.

    Returns:
        all states y [B, T, H] and the last one h [B, H], or [T, H] and [H].

    Raises:
        RuntimeError: no time step, or shapes, dtypes or devices that do not fit.

    Source: Pascanu et al. 2013, "How to construct deep recurrent neural networks".
    """
    if x.dim() not in (2, 3):
        raise RuntimeError(f"deep_transition: x must be [B, T, I] or [T, I], got {list(x.shape)}")
    if not weights:
        raise RuntimeError("deep_transition: weights must hold at least one matrix, got none")
    biases = [] if biases is None else list(biases)
    weights = list(weights)
    batched = x.dim() == 3
    if not batched:
        x = x.unsqueeze(0)
        h0 = h0 if h0 is None else h0.unsqueeze(0)
    if x.size(1) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if h0 is None:
        h0 = torch.zeros(x.size(0), weights[-1].size(0), dtype=x.dtype, device=x.device)
    dtype = _autocast_dtype(x)
    if dtype is not None:
        x, h0, *w = _cast(dtype, x, h0, *weights, *biases)
        weights, biases = w[: len(weights)], w[len(weights) :]
    if _transformed() or _recorded():
        y, h = reference.deep_transition(x, h0, weights, biases, negative_slope)
    else:
        save = torch.is_grad_enabled() and _any_needs_grad(x, h0, *weights, *biases)
        y, h, _ = ops.deep_transition(x, h0, weights, biases, negative_slope, save)
    return (y, h) if batched else (y.squeeze(0), h.squeeze(0))


NO_WEIGHTS = (None, None, None, None, None)


def layers(mode, x, h0, c0, weights, bidirectional, batch_first, batch_sizes, dropout, training):
    """All layers of one kind -> y, h_n, c_n; arguments as `lstm`, c_n is of size [0] unless LSTM."""
    D = 2 if bidirectional else 1
    L = len(weights) // D
    if not L or L * D != len(weights):
        raise RuntimeError(f"weights must hold {D} list(s) a layer, got {len(weights)} in all")
    packed = batch_sizes is not None
    batch_first = batch_first and not packed
    if (batch_sizes if packed else x).size(1 if batch_first else 0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    weights = [_five(w) for w in weights]
    W_ih, W_hh, _, _, W_hr = weights[0]
    if x.device != W_ih.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {x.device} and parameter tensor at {W_ih.device}"
        )
    if h0 is None:  # one state of zeros serves every layer
        B = int(batch_sizes[0]) if packed else x.size(0 if batch_first else 1)
        h0 = torch.zeros(D, B, W_hh.size(1), dtype=x.dtype, device=x.device)
        if mode == "lstm":
            c0 = h0 if W_hr is None else torch.zeros(D, B, W_hr.size(1), dtype=x.dtype, device=x.device)
        hs, cs = [h0] * L, [c0] * L
    else:
        if x.device != h0.device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, "
                f"found input tensor at {x.device} and hidden tensor at {h0.device}"
            )
        hs = [h0] if L == 1 else h0.split(D)
        cs = [c0] * L if L == 1 or c0 is None else c0.split(D)
    if _recorded():
        how = (L, float(dropout), training, bidirectional)
        return _by_torch(mode, x, hs, cs, weights, how, batch_first, batch_sizes)
    state = h0 if c0 is None else c0
    amp = _autocast_dtype(x)
    if amp is not None:
        x, *hs = _cast(amp, x, *hs)
        cs = _cast(amp, *cs)
        weights = [_cast(amp, *w) for w in weights]

    # torch draws dropout over [T, B, D·H] in memory order: inner layers then run time first, so that a seed
    # gives torch's masks. The layout is turned by views; the last layer writes the caller's.
    drop = training and dropout > 0 and L > 1
    plain = _transformed()
    turned = drop and batch_first
    if turned:
        x = x.transpose(0, 1)
    hn, cn = [], []
    for k in range(L):
        last = k == L - 1
        if last and turned:
            x = x.transpose(0, 1)
        w, w_r = weights[k * D], weights[k * D + 1] if bidirectional else NO_WEIGHTS
        first = batch_first and (last or not turned)
        x, h, c = _layer(mode, x, hs[k], cs[k], w, w_r, batch_sizes, first, plain)
        if drop and not last:
            x = F.dropout(x, dropout, True)
        hn.append(h)
        cn.append(c)
    y, h, c = x, hn[0] if L == 1 else torch.cat(hn), cn[0] if L == 1 else torch.cat(cn)
    if amp is not None and (mode == "gru" or mode == "lstm" and (packed or W_hr is not None)):
        dtype = _state_dtype(state, amp)
        c = c.to(dtype)
        if W_hr is None:
            y, h = y.to(dtype), h.to(dtype)
    return y, h, c


def _by_torch(mode, x, hs, cs, weights, how, batch_first, batch_sizes):
    """`layers` as one operator of torch's own. hs, cs: of each layer; how: what it takes after the biases."""
    flat = [w for direction in weights for w in direction if w is not None]
    hx = (torch.cat(hs), torch.cat(cs)) if mode == "lstm" else torch.cat(hs)
    biased, op = weights[0][2] is not None, getattr(torch._VF, mode)
    if batch_sizes is None:
        y, h, *c = op(x, hx, flat, biased, *how, batch_first)
    else:
        y, h, *c = op(x, batch_sizes, hx, flat, biased, *how)
    return y, h, c[0] if c else x.new_empty(0)


def freeze(mode, w_ih, w_hh):
    """The weights of one direction of a layer, packed once: `frozen` of `try_cell` and `try_layers`.

    mode is that of `layers`; w_ih [G·H, I] and w_hh [G·H, H], float32 or float64 on the CPU, G gates. As long
    as these are the tensors of a call that records no graph, and torch counts no change of them (`_version`,
    their place in memory), it reads the packed ones; else the weights themselves.
    """
    return ops.freeze(mode, w_ih, w_hh)


def try_cell(mode, parameters, x, h, c, frozen=None):
    """One step of a cell, without a detour through Python -> h', or (h', c') for LSTM; or None.

    x [B, I] and h, c [B, H], or without B; None is zeros. None comes back for whatever needs more than plain
    float tensors (and for every error): then `step` is to be called.
    """
    if torch.compiler.is_dynamo_compiling():
        return None
    return ops.try_cell(mode, parameters, x, h, c, frozen)


def try_layers(mode, parameters, x, h, c, bias, batch_first, layers=1, both=False, frozen=None):
    """A module's layers, in one direction or both, likewise -> (y, h_n, c_n or None); or None, as `try_cell`.

    frozen: a tuple with what `freeze` returned for each layer and direction in turn, or None.
    """
    if torch.compiler.is_dynamo_compiling():
        return None
    return ops.try_layers(mode, parameters, x, h, c, bias, batch_first, layers, both, frozen)


def step(mode, x, h, c, w_ih, w_hh, b_ih, b_hh):
    """One step of a cell: x [B, I], h [B, H], c [B, H] or None -> h', c' (size [0] unless LSTM).

    It is the layer's op with T = 1.
    """
    state = h if c is None else c
    amp = _autocast_dtype(x)
    if amp is not None:
        x, h, c, w_ih, w_hh, b_ih, b_hh = _cast(amp, x, h, c, w_ih, w_hh, b_ih, b_hh)
    if c is not None:
        c = c.unsqueeze(0)
    w = (w_ih, w_hh, b_ih, b_hh, None)
    # torch allows a cell without inputs or without units: nothing is multiplied, so there is nothing to fuse.
    plain = _transformed() or _recorded() or 0 in w_ih.shape
    _, h, c = _layer(mode, x.unsqueeze(0), h.unsqueeze(0), c, w, NO_WEIGHTS, None, False, plain)
    h = h.squeeze(0)
    if mode == "lstm":
        c = c.squeeze(0)
    if amp is not None and mode in ("lstm", "gru"):
        dtype = _state_dtype(state, amp)
        h, c = h.to(dtype), c.to(dtype)
    return h, c


def _layer(mode, x, h0, c0, w, w_r, batch_sizes, batch_first, plain):
    """One layer, by the op or in plain torch -> y, h_n, c_n."""
    if plain:
        return reference.recurrent(mode, x, h0, c0, *w, *w_r, batch_sizes, batch_first)
    save = torch.is_grad_enabled() and _any_needs_grad(x, h0, c0, *w, *w_r)
    return ops.recurrent(mode, x, h0, c0, *w, *w_r, batch_sizes, batch_first, save)[:3]


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


def _autocast_dtype(x):
    """The dtype autocast asks for on x's device, or None."""
    if not torch._C._is_any_autocast_enabled():
        return None
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def _cast(dtype, *tensors):
    """As autocast casts: floating point but not float64."""
    return [
        t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype)
        for t in tensors
    ]


def _state_dtype(state, amp):
    """On the CPU torch runs these cells step by step: only products are cast, the state keeps its dtype."""
    return torch.promote_types(state.dtype, amp) if state.device.type == "cpu" else amp


def explain(layer: str, x: Tensor, states: list[Tensor | None], weights: list[Tensor | None]) -> str:
    """One sentence: which path `layer` takes for x, with these states and weights, and why."""
    plain = "plain torch (rnnfast.reference)"
    if _transformed():
        return f"{layer}: {plain}, because a torch.func transform or forward-mode AD is active."
    if _recorded():
        return f"{layer}: torch's own operators, because a trace or an export to ONNX is being made."
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
    dtype = _autocast_dtype(x)
    dtype = f"{x.dtype}" if dtype is None else f"{dtype} (autocast)"
    needed = torch.is_grad_enabled() and _any_needs_grad(x, *states, *weights)
    why = "some input needs a gradient" if needed else "no input needs a gradient or grad mode is off"
    return (
        f"{layer}: fused {kernel}, {dtype}{isa}, "
        f"{'saving' if needed else 'not saving'} activations for backward, because {why}."
    )
