"""Whole layers: drop-ins for torch.nn's RNN, LSTM and GRU, their constructors, parameters and errors.

They subclass RNNBase, not torch.nn.LSTM and its like, at which torch.compile breaks the graph.
"""

import numbers
import warnings
from types import NoneType
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import Unpack  # Python has it from 3.11 on; torch needs the package, too

from .. import _episodes, _paths
from .._paths import CELLS
from ._common import check_dtype, check_features
from ._tools import ForTools, proxy_among
from ._twins import drop_in_for
from .freeze import Freezable

Rows = TypeVar("Rows", Tensor, PackedSequence)  # y is what x is

# torch's names of the modes -> those of the ops
_MODES = {mode.upper(): mode for mode in CELLS}

_NO_PROJECTION = "proj_size argument is only supported for LSTM, not RNN or GRU"


class Episodes(TypedDict, total=False):
    """What forward takes beside torch.nn's arguments, by name; None is as if it were not given."""

    lengths: Tensor  # int64 [B]
    resets: Tensor  # bool [T, B], or [B, T] if batch_first
    reset_state: Tensor | tuple[Tensor, Tensor]  # [L·D, B or 1, H or P]
    return_all_states: bool


def _check_type(name, value, expected):
    if not isinstance(value, expected):
        raise TypeError(f"{name} should be of type {expected.__name__}, got: {type(value).__name__}")


class _Layers(ForTools, Freezable, RNNBase):
    """What the layers share: making and reading weights, checking, and the three kinds of input.

    A layer of a cell that has only h is a subclass whose `__init__` names the cell, as GRU.
    """

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        learn_initial_state: bool = False,
    ) -> None:
        """RNNBase's, which knows only the gates of torch's cells, for any: mode is a key of CELLS."""
        super(RNNBase, self).__init__()  # Module's
        self.mode = mode.upper()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._check_arguments(dropout)
        if proj_size and not CELLS[mode]["has_cell"]:
            raise ValueError(_NO_PROJECTION)

        G, H, P = CELLS[mode]["gates"] * hidden_size, hidden_size, proj_size or hidden_size
        directions = ("", "_reverse") if bidirectional else ("",)
        self._flat_weights_names, self._all_weights = [], []
        for layer in range(num_layers):
            I = input_size if layer == 0 else P * len(directions)  # noqa: E741
            shapes = {"weight_ih": (G, I), "weight_hh": (G, P)}
            if bias:
                shapes |= {"bias_ih": (G,), "bias_hh": (G,)}
            if proj_size:
                shapes["weight_hr"] = (P, H)
            for direction in directions:
                names = [f"{name}_l{layer}{direction}" for name in shapes]
                for name, shape in zip(names, shapes.values(), strict=True):
                    setattr(self, name, Parameter(torch.empty(shape, device=device, dtype=dtype)))
                self._flat_weights_names.extend(names)
                self._all_weights.append(names)
        self._init_flat_weights()
        if learn_initial_state:
            self.learn_initial_state = True
            for name, units in {"h_0": P, "c_0": H}.items():
                if name == "h_0" or CELLS[mode]["has_cell"]:
                    shape = num_layers * len(directions), 1, units
                    setattr(self, name, Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    # what Python's errors about missing and unknown arguments call it, as torch's
    __init__.__qualname__ = "RNNBase.__init__"

    def _check_arguments(self, dropout):
        """What RNNBase checks, in its order; dropout as the caller gave it."""
        if not isinstance(dropout, numbers.Number) or not 0 <= dropout <= 1 or isinstance(dropout, bool):
            raise ValueError(
                "dropout should be a number in range [0, 1] "
                "representing the probability of an element being zeroed"
            )
        if dropout > 0 and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last "
                "recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and "
                f"num_layers={self.num_layers}",
                stacklevel=4,  # the line that makes the layer: LSTM(...)
            )
        for name in "bias", "batch_first":
            _check_type(name, getattr(self, name), bool)
        for name in "input_size", "hidden_size":
            value = getattr(self, name)
            _check_type(name, value, int)
            if value <= 0:
                raise ValueError(f"{name} must be greater than zero")
        if self.num_layers <= 0:
            raise ValueError("num_layers must be greater than zero")
        if self.proj_size < 0:
            raise ValueError("proj_size should be a positive integer or zero to disable projections")
        if self.proj_size >= self.hidden_size:
            raise ValueError("proj_size has to be smaller than hidden_size")

    def reset_parameters(self) -> None:
        """Draws the weights as torch.nn does; a learned initial state begins at zero."""
        super().reset_parameters()
        for state in self._initial() or ():
            if state is not None:
                torch.nn.init.zeros_(state)

    def _initial(self):
        """(h_0, c_0 or None) where they are learned, else None."""
        return (self.h_0, getattr(self, "c_0", None)) if self.learn_initial_state else None

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, *rest):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        if self.learn_initial_state:  # a model without one may be loaded: then it stays as it is
            for name in "h_0", "c_0":
                if prefix + name in missing_keys:
                    missing_keys.remove(prefix + name)

    def extra_repr(self) -> str:
        """RNNBase's, and what torch.nn's layers have not."""
        return super().extra_repr() + (", learn_initial_state=True" if self.learn_initial_state else "")

    def flatten_parameters(self) -> None:
        """Nothing to do: the kernels read each weight where it lies."""

    def _weights(self):
        p = self._parameters  # as `read` does, of all at once
        return [[p[n] if n in p else getattr(self, n) for n in names] for names in self._all_weights]

    def _run(self, input, h, c, given):
        """input, h_0 and c_0 as the caller gave them -> what forward returns. None is zeros, or no c.

        given: what else forward was given, a dict, or what stands for one in a graph that torch.fx makes.
        """
        mode = _MODES[self.mode]
        if not (self.proj_size or (self.dropout and self.training and self.num_layers > 1)):
            how = (self.bias, self.batch_first, self.num_layers, self.bidirectional)
            initial = self._initial() if self.learn_initial_state else None
            done = _paths.try_layers(mode, self._parameters, input, h, c, how, self._frozen, given, initial)
            if done is not None:
                y, h, c = done
                return (y, h) if c is None else (y, (h, c))
        episodes = None
        if self.learn_initial_state or type(given) is not dict or given:
            proxy = proxy_among(input, h, c, given)
            if proxy is not None:
                return self._fx_node(proxy, input, h if c is None else (h, c), given)
            episodes = _episodes.of_call(type(self), mode, given, self._initial())
        x, batch_sizes, batched = input, None, True
        packed = isinstance(input, PackedSequence)
        proxy = proxy_among(input.data if packed else input, h, c)
        if proxy is not None:
            return self._fx_node(proxy, input, h if c is None else (h, c))
        if packed:
            x, batch_sizes, order, back = input
            if x.dim() != 2:
                raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}")
        else:
            batched = x.dim() == 3
            batch_dim = 0 if self.batch_first else 1
            if not batched and x.dim() != 2:
                self._raise_input_dim(x)
            if h is not None:
                self._check_state_dim(x, h, c)
            if not batched:
                x = x.unsqueeze(batch_dim)
                if h is not None:
                    h, c = h.unsqueeze(1), c if c is None else c.unsqueeze(1)
                if episodes is not None:
                    episodes = episodes.of_a_batch(batch_dim)

        weights = self._weights()
        check_dtype(x, weights[0][0])
        check_features(x, self.input_size)
        if h is not None:
            B = int(batch_sizes[0]) if packed else x.size(batch_dim)
            self._check_state_size(B, h, c)
            if packed and order is not None:
                h, c = h.index_select(1, order), c if c is None else c.index_select(1, order)

        options = _paths.Options(self.bidirectional, self.batch_first, self.dropout, self.training)
        has_cell = CELLS[mode]["has_cell"]
        y, h, c, *every = _paths.layers(mode, x, h, c, weights, options, batch_sizes, episodes)
        if packed:
            y = PackedSequence(y, batch_sizes, order, back)
            if back is not None:
                h, c = h.index_select(1, back), c.index_select(1, back) if has_cell else c
        elif not batched:
            y, h, c = y.squeeze(batch_dim), h.squeeze(1), c.squeeze(1) if has_cell else c
            every = [s if s is None else s.squeeze(batch_dim + 1) for s in every]
        if every:
            every = (tuple(every) if has_cell else every[0],)
        return (y, (h, c), *every) if has_cell else (y, h, *every)

    def forward(self, input, hx=None, **episodes: Unpack[Episodes]):
        """-> output, h_n; see the class."""
        # RNN and GRU say this again: Python's errors about the arguments then name them, as torch's do
        return self._run(input, hx, None, episodes)

    def _packed(self):
        if self.proj_size:
            return None
        return tuple(_paths.freeze(_MODES[self.mode], *w[:2]) for w in self._weights())

    def _raise_input_dim(self, x):
        name, tail = ("RNN", " tensor") if self.mode.startswith("RNN") else (self.mode, "")
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {x.dim()}D{tail} instead")

    def _check_state_dim(self, x, h, c):
        D = x.dim()
        if h.dim() == D and (c is None or c.dim() == D):
            return
        batched = "batched" if D == 3 else "unbatched"
        if c is None:
            raise RuntimeError(
                f"For {batched} {D}-D input, hx should also be {D}-D but got {h.dim()}-D tensor"
            )
        raise RuntimeError(
            f"For {batched} {D}-D input, hx and cx should "
            f"also be {D}-D but got ({h.dim()}-D, {c.dim()}-D) tensors"
        )

    def _check_state_size(self, B, h, c):
        L = self.num_layers * (2 if self.bidirectional else 1)
        expected = (L, B, self.proj_size or self.hidden_size)
        if h.shape != expected:
            label = "hidden" if c is None else "hidden[0]"
            raise RuntimeError(f"Expected {label} size {expected}, got {list(h.shape)}")
        expected = (L, B, self.hidden_size)
        if c is not None and c.shape != expected:
            raise RuntimeError(f"Expected hidden[1] size {expected}, got {list(c.shape)}")

    def explain(self, input: Any, hx: Any = None, **more: Any) -> str:
        """One sentence: which path this input takes, and why; arguments as those of forward."""
        x = input.data if isinstance(input, PackedSequence) else input
        states = [hx] if hx is None or isinstance(hx, Tensor) else list(hx)
        weights = [w for direction in self._weights() for w in direction]
        if isinstance(input, PackedSequence):
            steps, rows = len(input.batch_sizes), input.batch_sizes[0].item()
        else:
            steps, rows = x.shape[:2] if x.dim() == 3 else (x.size(0), 1)
            if self.batch_first and x.dim() == 3:
                steps, rows = rows, steps
        units = self.proj_size or self.hidden_size
        said = _paths.explain(type(self).__name__, x, states, weights, rows, units, steps)
        return said + self._frozen_or_not()


@drop_in_for(torch.nn.RNN)
class RNN(_Layers):
    """Elman network. Drop-in for `torch.nn.RNN`.

        h' = tanh(W_i x + b_i + W_h h + b_h)      with nonlinearity="relu": relu for tanh

    Shapes: input [T, B, I] (or [B, T, I] with batch_first, [T, I] unbatched, PackedSequence) and
    h_0 [L·D, B, H] -> output [T, B, D·H], h_n [L·D, B, H]; L layers, D directions.

    Examples:
        >>> import torch, rnnfast
        >>> output, h_n = rnnfast.RNN(10, 20, num_layers=2, nonlinearity="relu")(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))

    Args: as `torch.nn.RNN`: input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True,
    batch_first=False, dropout=0.0, bidirectional=False, device=None, dtype=None. What else this class and its
    calls take: see `LSTM`, without c.

    Raises: what `torch.nn.RNN` raises, with its texts.

    Source: Elman 1990.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:  # even 0
            raise ValueError(_NO_PROJECTION)
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"rnn_{self.nonlinearity}", *args, **kwargs)

    def forward(
        self, input: Rows, hx: Tensor | None = None, **episodes: Unpack[Episodes]
    ) -> tuple[Rows, Tensor]:
        """-> output, h_n; see the class."""
        return self._run(input, hx, None, episodes)


@drop_in_for(torch.nn.LSTM)
class LSTM(_Layers):
    """Long short-term memory. Drop-in for `torch.nn.LSTM`.

        i = σ(W_ii x + b_ii + W_hi h + b_hi)      f = σ(W_if x + b_if + W_hf h + b_hf)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)   o = σ(W_io x + b_io + W_ho h + b_ho)
        c' = f ⊙ c + i ⊙ g                        h' = o ⊙ tanh(c')      (with proj_size: h' = W_hr h')

    Shapes: input [T, B, I] (or [B, T, I] with batch_first, [T, I] unbatched, PackedSequence),
    h_0 [L·D, B, P], c_0 [L·D, B, H] -> output [T, B, D·P], (h_n [L·D, B, P], c_n [L·D, B, H]); L layers,
    D directions, P = proj_size or H.

    Examples:
        >>> import torch, rnnfast
        >>> lstm = rnnfast.LSTM(10, 20, batch_first=True, bidirectional=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(3, 5, 10))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([3, 5, 40]), torch.Size([2, 3, 20]), torch.Size([2, 3, 20]))

    Args: as `torch.nn.LSTM`: input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
    dropout=0.0, bidirectional=False, proj_size=0, device=None, dtype=None. And, by name:

    - learn_initial_state=False: parameters h_0 [L·D, 1, P] and c_0 [L·D, 1, H], zeros at first, are the state
      of a call without hx. A state_dict without them loads.

    A call takes, by name, beside input and hx:

    - lengths: int64 [B] on the CPU or the input's device, in any order: row b has the first lengths[b] steps.
    - resets: bool [T, B] ([B, T] with batch_first, [T] unbatched): before such a step the row's state, in
      every layer, becomes that of reset_state.
    - reset_state: (h [L·D, B or 1, P], c [L·D, B or 1, H]); default: what a call without hx begins from.
    - return_all_states=True: the third result is (h, c) of every step and layer, [L·D, T, B, .].

    Examples:
        >>> layer, x = rnnfast.LSTM(10, 20, learn_initial_state=True), torch.randn(5, 3, 10)
        >>> output, state, (h, c) = layer(x, lengths=torch.tensor([2, 5, 0]), return_all_states=True)
        >>> h.shape
        torch.Size([1, 5, 3, 20])
        >>> begins = torch.rand(5, 3) < 0.1  # where an episode begins
        >>> output, state = layer(x, resets=begins)

    `rnnfast.functional.lstm` says more of them.

    Raises: what `torch.nn.LSTM` raises, with its texts; of the arguments that it has not, RuntimeError or
    TypeError, naming the argument, what came and what was expected.

    Source: Hochreiter and Schmidhuber 1997, Gers et al. 2000 (forget gate), Sak et al. 2014 (projection).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("lstm", *args, **kwargs)

    def forward(
        self, input: Rows, hx: tuple[Tensor, Tensor] | None = None, **episodes: Unpack[Episodes]
    ) -> tuple[Rows, tuple[Tensor, Tensor]]:
        """-> output, (h_n, c_n); see the class."""
        if not isinstance(hx, (tuple, list, NoneType)):
            if proxy_among(hx) is not None:
                return self._fx_node(hx, input, hx, episodes)
            raise TypeError(f"lstm(): hx has type {type(hx).__name__}, expected a tuple (h_0, c_0)")
        h, c = (None, None) if hx is None else (hx[0], hx[1])
        if hx is not None and len(hx) != 2:
            raise RuntimeError("lstm expects two hidden states")
        return self._run(input, h, c, episodes)

    # what a subclass with a forward of its own calls: torch's, which take the pair of states
    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    check_forward_args = torch.nn.LSTM.check_forward_args
    permute_hidden = torch.nn.LSTM.permute_hidden


@drop_in_for(torch.nn.GRU)
class GRU(_Layers):
    """Gated recurrent unit; the reset gate acts after the hidden product. Drop-in for `torch.nn.GRU`.

        r = σ(W_ir x + b_ir + W_hr h + b_hr)      z = σ(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    Shapes: input [T, B, I] (or [B, T, I] with batch_first, [T, I] unbatched, PackedSequence) and
    h_0 [L·D, B, H] -> output [T, B, D·H], h_n [L·D, B, H]; L layers, D directions.

    Examples:
        >>> import torch, rnnfast
        >>> output, h_n = rnnfast.GRU(10, 20)(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))

    Args: as `torch.nn.GRU`: input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None. What else this class and its calls take: see `LSTM`,
    without c.

    Raises: what `torch.nn.GRU` raises, with its texts.

    Source: Cho et al. 2014, in the form of cuDNN and torch.nn.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:  # even 0
            raise ValueError(_NO_PROJECTION)
        super().__init__("gru", *args, **kwargs)

    def forward(
        self, input: Rows, hx: Tensor | None = None, **episodes: Unpack[Episodes]
    ) -> tuple[Rows, Tensor]:
        """-> output, h_n; see the class."""
        return self._run(input, hx, None, episodes)
