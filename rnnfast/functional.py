"""The layers as functions of tensors."""

from torch import Tensor

from . import _episodes, _paths
from ._paths import Options

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
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: tuple[Tensor, Tensor] | None = None,
    return_all_states: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Long short-term memory, one or more layers.

        i = σ(W_ii x + b_ii + W_hi h + b_hi)      f = σ(W_if x + b_if + W_hf h + b_hf)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)   o = σ(W_io x + b_io + W_ho h + b_ho)
        c' = f ⊙ c + i ⊙ g                        h' = o ⊙ tanh(c')

    Shapes: T steps, B rows, I features, H units, L layers, D directions, P = proj_size or H.

    Examples:
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
        bidirectional: D = 2: each layer has a direction that runs from the last step to the first.
        batch_first: x is [B, T, I].
        batch_sizes: int64 [T] on the CPU, as in PackedSequence.
        dropout: probability of an element of every layer's output but the last to be zeroed, while training.
        training: whether there is dropout.
        lengths: int64 [B], on the CPU or where x is, in any order: row b has the first lengths[b] steps, 0 to
            T. The reverse direction begins with the last of them. After them y is zero, x is not read and
            gets no gradient; h_n and c_n are those of a row's last step, or h_0 and c_0 if it has none.
        resets: bool [T, B] ([B, T] if batch_first): before such a step the state of the row becomes
            reset_state, in every layer. Not for both directions.
        reset_state: h [L·D, B or 1, P] and c [L·D, B or 1, H]; None is zeros. Gradients flow into it, none
            past a reset into what was before.
        return_all_states: also return h and c of every step and layer.

    Returns:
        y in the layout of x with D·P features, and (h_n [L·D, B, P], c_n [L·D, B, H]); with return_all_states
        also (h [L·D, T, B, P], c [L·D, T, B, H]), or [L·D, B, T, .] if batch_first, or packed [L·D, N, .].

    Raises:
        RuntimeError: no time step, or shapes, dtypes, devices or lengths that do not fit.
        TypeError: lengths, resets or reset_state that are no tensors.

    Source: Hochreiter and Schmidhuber 1997, Gers et al. 2000 (forget gate), Sak et al. 2014 (projection).
    """
    h, c = (None, None) if hx is None else hx
    options = Options(bidirectional, batch_first, dropout, training)
    episodes = _given("lstm", lengths, resets, reset_state, return_all_states)
    y, h, c, *every = _paths.layers("lstm", x, h, c, weights, options, batch_sizes, episodes)
    return (y, (h, c), tuple(every)) if every else (y, (h, c))


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
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
    return_all_states: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit, one or more layers; the reset gate acts after the hidden product.

        r = σ(W_ir x + b_ir + W_hr h + b_hr)      z = σ(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    Shapes: as `lstm`, with 3H for 4H, no c and no projection.

    Examples:
        >>> import torch, rnnfast
        >>> w = [torch.randn(9, 2), torch.randn(9, 3), torch.randn(9), torch.randn(9)]
        >>> y, h = rnnfast.functional.gru(torch.randn(5, 4, 2), None, [w])
        >>> y.shape, h.shape
        (torch.Size([5, 4, 3]), torch.Size([1, 4, 3]))

    Args, Returns, Raises: as `lstm`.

    Source: Cho et al. 2014, in the form of cuDNN and torch.nn.
    """
    options = Options(bidirectional, batch_first, dropout, training)
    episodes = _given("gru", lengths, resets, reset_state, return_all_states)
    y, h, _, *every = _paths.layers("gru", x, hx, None, weights, options, batch_sizes, episodes)
    return (y, h, every[0]) if every else (y, h)


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
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
    return_all_states: bool = False,
) -> tuple[Tensor, Tensor]:
    """Elman network, one or more layers.

        h' = tanh(W_i x + b_i + W_h h + b_h)      with nonlinearity "relu": relu for tanh

    Shapes: as `lstm`, with H for 4H, no c and no projection.

    Examples:
        >>> import torch, rnnfast
        >>> w = [torch.randn(3, 2), torch.randn(3, 3), torch.randn(3), torch.randn(3)]
        >>> y, h = rnnfast.functional.rnn(torch.randn(5, 4, 2), None, [w], nonlinearity="relu")
        >>> y.shape, h.shape
        (torch.Size([5, 4, 3]), torch.Size([1, 4, 3]))

    Args, Returns, Raises: as `lstm`; ValueError for a nonlinearity that is neither "tanh" nor "relu".

    Source: Elman 1990.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    options = Options(bidirectional, batch_first, dropout, training)
    mode = "rnn_" + nonlinearity
    episodes = _given(mode, lengths, resets, reset_state, return_all_states)
    y, h, _, *every = _paths.layers(mode, x, hx, None, weights, options, batch_sizes, episodes)
    return (y, h, every[0]) if every else (y, h)


def deep_transition(
    x: Tensor,
    h0: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor] | None = None,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Deep-transition RNN: each step is a multi-layer perceptron over [x, h].

        a = [x, h]
        a = leaky_relu(W_l a + b_l)      for every layer l of the perceptron but the last
        h' = W a + b

    Examples:
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
        negative_slope: of leaky_relu.

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
    y, h = _paths.deep_transition(x, h0, weights, biases, negative_slope)
    return (y, h) if batched else (y.squeeze(0), h.squeeze(0))


def _given(mode, *episodes):
    """lengths, resets, reset_state, return_all_states of a call -> what `_paths.layers` takes."""
    return _episodes.of_call(None, mode, dict(zip(_episodes.NAMES, episodes, strict=True)))
