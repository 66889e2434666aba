"""One step of a layer: drop-ins for torch.nn's RNNCell, LSTMCell and GRUCell."""

from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNCellBase
from typing_extensions import Unpack  # Python has it from 3.11 on; torch needs the package, too

from .. import _episodes, _paths
from .._paths import CELLS
from ._common import read
from ._tools import ForTools, proxy_among
from ._twins import drop_in_for
from .freeze import Freezable


class Begin(TypedDict, total=False):
    """What forward takes beside torch.nn's arguments, by name; None is as if it were not given."""

    resets: Tensor  # bool [B]: for which rows of the input hx is not read
    reset_state: Tensor | tuple[Tensor, Tensor]  # [B or 1, H], what they begin from; zeros


class _Cell(ForTools, Freezable, RNNCellBase):
    """What the cells share. `_mode` is the op's name for the cell, `_name` what torch's errors call it."""

    def __init__(self, mode, input_size, hidden_size, bias, device, dtype):
        gates = CELLS[mode]["gates"]
        super().__init__(input_size, hidden_size, bias, num_chunks=gates, device=device, dtype=dtype)

    def _weights(self):
        return [read(self, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    def _begin(self, mode, input, begin, h, c=None):
        """As `_run`; begin: a dict of what else forward was given, or what stands for one in torch.fx."""
        states = (h, c) if CELLS[mode]["has_cell"] else (h,)
        if type(begin) is not dict or begin:
            proxy = proxy_among(input, *states, begin)
            if proxy is not None:
                return self._fx_node(proxy, input, h if h is None or c is None else (h, c), begin)
            states = _episodes.begin_anew(type(self), states, begin, input)
        return self._run(mode, input, *states)

    def _run(self, mode, input, *states):
        """input [B, I] or [I]; states h (and c) [B, H] or [H], or None -> h', or (h', c') for LSTM."""
        proxy = proxy_among(input, *states)
        if proxy is not None:
            pair = len(states) == 2 and states[0] is not None
            return self._fx_node(proxy, input, states if pair else states[0])
        if input.dim() not in (1, 2):
            raise ValueError(f"{self._name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        given, has_cell = states[0] is not None, CELLS[mode]["has_cell"]
        if given:
            for k, s in enumerate(states):
                if s.dim() not in (1, 2):
                    what = f"hx[{k}]" if has_cell else "hidden"
                    raise ValueError(f"{self._name}: Expected {what} to be 1D or 2D, got {s.dim()}D instead")
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
            states = [s.unsqueeze(0) for s in states] if given else states
        w_ih, w_hh, b_ih, b_hh = self._weights()
        if input.size(1) != w_ih.size(1):
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.size(1)} expected {w_ih.size(1)}"
            )
        B, H = input.size(0), self.hidden_size
        if given:
            for k, s in enumerate(states):
                if s.shape != (B, H):
                    self._raise_state_size(k, s, B, H)
        else:
            states = [torch.zeros(B, H, dtype=input.dtype, device=input.device)] * len(states)
        h, c = states if has_cell else (states[0], None)
        h, c = _paths.step(mode, input, h, c, w_ih, w_hh, b_ih, b_hh)
        if not batched:
            h, c = h.squeeze(0), c.squeeze(0) if has_cell else c
        return (h, c) if has_cell else h

    def _packed(self):
        return _paths.freeze(self._mode, *self._weights()[:2])

    @staticmethod
    def _raise_state_size(k, s, B, H):
        if s.size(0) != B:
            raise RuntimeError(f"Input batch size {B} doesn't match hidden{k} batch size {s.size(0)}")
        got = list(s.shape[1:]) if s.dim() == 1 or s.size(1) == H else s.size(1)
        raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {got}, expected {H}")

    def explain(self, input: Tensor, hx: Any = None) -> str:
        """One sentence: which path this input takes, and why."""
        states = [hx] if hx is None or isinstance(hx, Tensor) else list(hx)
        rows = input.size(0) if input.dim() == 2 else 1
        said = _paths.explain(self._name, input, states, self._weights(), rows, self.hidden_size, 1)
        return said + self._frozen_or_not()


_BY_NONLINEARITY = {"tanh": "rnn_tanh", "relu": "rnn_relu"}


@drop_in_for(torch.nn.RNNCell)
class RNNCell(_Cell):
    """One step of an Elman network. Drop-in for `torch.nn.RNNCell`.

        h' = tanh(W_i x + b_i + W_h h + b_h)      with nonlinearity="relu": relu for tanh

    Shapes: input [B, I], hx [B, H] -> [B, H]; or [I], [H] -> [H]. hx None is zeros. resets and reset_state:
    as `LSTMCell`, without c.

    Examples:
        >>> import torch, rnnfast
        >>> rnnfast.RNNCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])

    Args: input_size, hidden_size, bias=True, nonlinearity="tanh" (or "relu"), device=None, dtype=None.

    Raises: what `torch.nn.RNNCell` raises, with its texts.

    Source: Elman 1990.
    """

    _name = "RNNCell"
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # as many gates with either nonlinearity: which one it is, and whether there is such a one, is asked
        # at every call, as in torch
        super().__init__("rnn_tanh", input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    @property
    def _mode(self):
        mode = _BY_NONLINEARITY.get(self.nonlinearity)
        if mode is None:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return mode

    def forward(self, input: Tensor, hx: Tensor | None = None, **begin: Unpack[Begin]) -> Tensor:
        """-> h'; see the class."""
        mode = self._mode
        h = _paths.try_cell(mode, self._parameters, input, hx, None, self._frozen, begin)
        return self._begin(mode, input, begin, hx) if h is None else h


@drop_in_for(torch.nn.LSTMCell)
class LSTMCell(_Cell):
    """One step of a long short-term memory. Drop-in for `torch.nn.LSTMCell`.

        i = σ(W_ii x + b_ii + W_hi h + b_hi)      f = σ(W_if x + b_if + W_hf h + b_hf)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)   o = σ(W_io x + b_io + W_ho h + b_ho)
        c' = f ⊙ c + i ⊙ g                        h' = o ⊙ tanh(c')

    Shapes: input [B, I], hx = (h [B, H], c [B, H]) -> (h' [B, H], c' [B, H]); or [I], ([H], [H]).
    hx None is zeros. A call also takes, by name, resets, bool [B] (or []): such a row goes on from
    reset_state, (h [B or 1, H], c [B or 1, H]), default zeros.

    Examples:
        >>> import torch, rnnfast
        >>> h, c = rnnfast.LSTMCell(10, 20)(torch.randn(3, 10))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))

    Args: input_size, hidden_size, bias=True, device=None, dtype=None.

    Raises: what `torch.nn.LSTMCell` raises, with its texts.

    Source: Hochreiter and Schmidhuber 1997, Gers et al. 2000.
    """

    _name, _mode = "LSTMCell", "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__("lstm", input_size, hidden_size, bias, device, dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, **begin: Unpack[Begin]
    ) -> tuple[Tensor, Tensor]:
        """-> (h', c'); see the class."""
        if hx is None:
            hx = (None, None)
        elif proxy_among(hx) is not None:
            return self._fx_node(hx, input, hx)
        elif isinstance(hx, Tensor):
            raise TypeError("lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor")
        elif len(hx) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
        h, c = hx
        done = _paths.try_cell("lstm", self._parameters, input, h, c, self._frozen, begin)
        return self._begin("lstm", input, begin, h, c) if done is None else done


@drop_in_for(torch.nn.GRUCell)
class GRUCell(_Cell):
    """One step of a gated recurrent unit. Drop-in for `torch.nn.GRUCell`.

        r = σ(W_ir x + b_ir + W_hr h + b_hr)      z = σ(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    Shapes: input [B, I], hx [B, H] -> [B, H]; or [I], [H] -> [H]. hx None is zeros. resets and reset_state:
    as `LSTMCell`, without c.

    Examples:
        >>> import torch, rnnfast
        >>> rnnfast.GRUCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])

    Args: input_size, hidden_size, bias=True, device=None, dtype=None.

    Raises: what `torch.nn.GRUCell` raises, with its texts.

    Source: Cho et al. 2014.
    """

    _name, _mode = "GRUCell", "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__("gru", input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None, **begin: Unpack[Begin]) -> Tensor:
        """-> h'; see the class."""
        h = _paths.try_cell("gru", self._parameters, input, hx, None, self._frozen, begin)
        return self._begin("gru", input, begin, hx) if h is None else h
