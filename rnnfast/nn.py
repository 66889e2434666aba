"""Drop-in recurrent modules: torch.nn's constructors, parameters, errors and outputs over `functional`.

They subclass RNNBase and RNNCellBase, not torch.nn.LSTM and its like, at which torch.compile breaks the
graph. Parameters are looked up in `_parameters` first: attribute access costs 0.6 µs each, and a stream pays
it every step.
"""

from types import NoneType

import torch
from torch import Tensor
from torch.nn import LeakyReLU, Linear, Module, Sequential
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.utils.rnn import PackedSequence

from . import functional

__all__ = [
    "GRU", "LSTM", "RNN", "DeepTransitionRNN", "GRUCell", "LSTMCell", "RNNCell", "freeze", "unfreeze",
]  # fmt: skip


def _read(module, name):
    """A parameter, or what stands in its place: a parametrization, weight_norm's tensor, a plain tensor."""
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


def _check_dtype(input, weight):
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )


def _check_features(input, input_size):
    if input.size(-1) != input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {input_size}, got {input.size(-1)}"
        )


# torch's names of the modes -> those of the ops
_MODES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}
_CELL_MODES = {"tanh": "rnn_tanh", "relu": "rnn_relu"}


class _Freezable(Module):
    """What `freeze` needs of a layer or cell; the packed weights are neither copied nor saved with it."""

    _frozen = None

    def train(self, mode=True):
        if mode:
            self._frozen = None
        return super().train(mode)

    def _frozen_or_not(self):
        return "" if self._frozen is None else " Its weights are frozen: see rnnfast.freeze."

    def __getstate__(self):
        state = super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__
        return {name: value for name, value in state.items() if name != "_frozen"}


class _Layers(_Freezable, RNNBase):
    """What RNN, LSTM and GRU share: reading weights, checking, and the three kinds of input."""

    def flatten_parameters(self) -> None:
        """Nothing to do: the kernels read each weight where it lies."""

    def _weights(self):
        p = self._parameters
        return [[p[n] if n in p else getattr(self, n) for n in names] for names in self._all_weights]

    def _run(self, input, h, c):
        """input, h_0 and c_0 (None: zeros; c_0 for LSTM only) as the caller gave them -> output, h_n, c_n."""
        if not (self.proj_size or (self.dropout and self.training and self.num_layers > 1)):
            done = functional.try_layers(
                _MODES[self.mode], self._parameters, input, h, c, self.bias, self.batch_first,
                self.num_layers, self.bidirectional, self._frozen,
            )  # fmt: skip
            if done is not None:
                return done
        x, batch_sizes, batched = input, None, True
        packed = isinstance(input, PackedSequence)
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

        weights = self._weights()
        _check_dtype(x, weights[0][0])
        _check_features(x, self.input_size)
        if h is not None:
            B = int(batch_sizes[0]) if packed else x.size(batch_dim)
            self._check_state_size(B, h, c)
            if packed and order is not None:
                h, c = h.index_select(1, order), c if c is None else c.index_select(1, order)

        y, h, c = functional.layers(
            _MODES[self.mode], x, h, c, weights, self.bidirectional, self.batch_first, batch_sizes,
            self.dropout, self.training,
        )  # fmt: skip
        if packed:
            y = PackedSequence(y, batch_sizes, order, back)
            if back is not None:
                h, c = h.index_select(1, back), c.index_select(1, back) if self.mode == "LSTM" else c
        elif not batched:
            y, h, c = y.squeeze(batch_dim), h.squeeze(1), c.squeeze(1) if self.mode == "LSTM" else c
        return y, h, c

    def _packed(self):
        if self.proj_size:
            return None
        return tuple(functional.freeze(_MODES[self.mode], *w[:2]) for w in self._weights())

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

    def explain(self, input, hx=None) -> str:
        """One sentence: which path this input takes, and why."""
        x = input.data if isinstance(input, PackedSequence) else input
        states = [hx] if hx is None or isinstance(hx, Tensor) else list(hx)
        weights = [w for direction in self._weights() for w in direction]
        return functional.explain(type(self).__name__, x, states, weights) + self._frozen_or_not()


class RNN(_Layers):
    """Elman network: h' = tanh or relu (W_i x + b_i + W_h h + b_h). Drop-in for `torch.nn.RNN`.

    Shapes: input [T, B, I] (or [B, T, I] with batch_first, [T, I] unbatched, PackedSequence) and
    h_0 [L·D, B, H] -> output [T, B, D·H], h_n [L·D, B, H]; L layers, D directions.

    >>> import torch, rnnfast
    >>> output, h_n = rnnfast.RNN(10, 20, num_layers=2, nonlinearity="relu")(torch.randn(5, 3, 10))
    >>> output.shape, h_n.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))

    Args: as `torch.nn.RNN`: input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True,
    batch_first=False, dropout=0.0, bidirectional=False, device=None, dtype=None.

    Raises: what `torch.nn.RNN` raises, with its texts.

    Source: Elman 1990.
    """

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)

    def forward(self, input, hx=None):
        """-> output, h_n; see the class."""
        y, h, _ = self._run(input, hx, None)
        return y, h


class LSTM(_Layers):
    """Long short-term memory. Drop-in for `torch.nn.LSTM`.

    .. code-block:: text

        i = σ(W_ii x + b_ii + W_hi h + b_hi)      f = σ(W_if x + b_if + W_hf h + b_hf)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)   o = σ(W_io x + b_io + W_ho h + b_ho)
        c' = f ⊙ c + i ⊙ g                        h' = o ⊙ tanh(c')      (with proj_size: h' = W_hr h')

    Shapes: input [T, B, I] (or [B, T, I] with batch_first, [T, I] unbatched, PackedSequence),
    h_0 [L·D, B, P], c_0 [L·D, B, H] -> output [T, B, D·P], (h_n [L·D, B, P], c_n [L·D, B, H]); L layers,
    D directions, P = proj_size or H.

    >>> import torch, rnnfast
    >>> output, (h_n, c_n) = rnnfast.LSTM(10, 20, batch_first=True, bidirectional=True)(torch.randn(3, 5, 10))
    >>> output.shape, h_n.shape, c_n.shape
    (torch.Size([3, 5, 40]), torch.Size([2, 3, 20]), torch.Size([2, 3, 20]))

    Args: as `torch.nn.LSTM`: input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
    dropout=0.0, bidirectional=False, proj_size=0, device=None, dtype=None.

    Raises: what `torch.nn.LSTM` raises, with its texts.

    Source: Hochreiter and Schmidhuber 1997, Gers et al. 2000 (forget gate), Sak et al. 2014 (projection).
    """

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)

    def forward(self, input, hx=None):
        """-> output, (h_n, c_n); see the class."""
        if not isinstance(hx, (tuple, list, NoneType)):
            raise TypeError(f"lstm(): hx has type {type(hx).__name__}, expected a tuple (h_0, c_0)")
        h, c = (None, None) if hx is None else (hx[0], hx[1])
        if hx is not None and len(hx) != 2:
            raise RuntimeError("lstm expects two hidden states")
        y, h, c = self._run(input, h, c)
        return y, (h, c)


class GRU(_Layers):
    """Gated recurrent unit; the reset gate acts after the hidden product. Drop-in for `torch.nn.GRU`.

    .. code-block:: text

        r = σ(W_ir x + b_ir + W_hr h + b_hr)      z = σ(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    Shapes: input [T, B, I] (or [B, T, I] with batch_first, [T, I] unbatched, PackedSequence) and
    h_0 [L·D, B, H] -> output [T, B, D·H], h_n [L·D, B, H]; L layers, D directions.

    >>> import torch, rnnfast
    >>> output, h_n = rnnfast.GRU(10, 20)(torch.randn(5, 3, 10))
    >>> output.shape, h_n.shape
    (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))

    Args: as `torch.nn.GRU`: input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None.

    Raises: what `torch.nn.GRU` raises, with its texts.

    Source: Cho et al. 2014, in the form of cuDNN and torch.nn.
    """

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

    def forward(self, input, hx=None):
        """-> output, h_n; see the class."""
        y, h, _ = self._run(input, hx, None)
        return y, h


class _Cell(_Freezable, RNNCellBase):
    """What the three cells share; `_name` is what torch's errors call them."""

    def _weights(self):
        p = self._parameters
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [p[n] if n in p else getattr(self, n) for n in names]

    def _run(self, mode, input, *states):
        """input [B, I] or [I]; states h (and c) [B, H] or [H], or None -> h', c'."""
        if input.dim() not in (1, 2):
            raise ValueError(f"{self._name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        given = states[0] is not None
        if given:
            for k, s in enumerate(states):
                if s.dim() not in (1, 2):
                    what = f"hx[{k}]" if mode == "lstm" else "hidden"
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
        h, c = states if mode == "lstm" else (states[0], None)
        h, c = functional.step(mode, input, h, c, w_ih, w_hh, b_ih, b_hh)
        if batched:
            return h, c
        return h.squeeze(0), c.squeeze(0) if mode == "lstm" else c

    def _packed(self):
        return functional.freeze(self._mode, *self._weights()[:2])

    @staticmethod
    def _raise_state_size(k, s, B, H):
        if s.size(0) != B:
            raise RuntimeError(f"Input batch size {B} doesn't match hidden{k} batch size {s.size(0)}")
        got = list(s.shape[1:]) if s.dim() == 1 or s.size(1) == H else s.size(1)
        raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {got}, expected {H}")

    def explain(self, input, hx=None) -> str:
        """One sentence: which path this input takes, and why."""
        states = [hx] if hx is None or isinstance(hx, Tensor) else list(hx)
        return functional.explain(self._name, input, states, self._weights()) + self._frozen_or_not()


class RNNCell(_Cell):
    """One step of an Elman network, h' = tanh or relu (W_i x + b_i + W_h h + b_h). For `torch.nn.RNNCell`.

    Shapes: input [B, I], hx [B, H] -> [B, H]; or [I], [H] -> [H]. hx None is zeros.

    >>> import torch, rnnfast
    >>> rnnfast.RNNCell(10, 20)(torch.randn(3, 10)).shape
    torch.Size([3, 20])

    Args: input_size, hidden_size, bias=True, nonlinearity="tanh" (or "relu"), device=None, dtype=None.

    Raises: what `torch.nn.RNNCell` raises, with its texts.

    Source: Elman 1990.
    """

    _name = "RNNCell"
    nonlinearity: str

    def __init__(self, input_size, hidden_size, bias=True, nonlinearity="tanh", device=None, dtype=None):
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    @property
    def _mode(self):
        mode = _CELL_MODES.get(self.nonlinearity)
        if mode is None:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return mode

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """-> h'; see the class."""
        mode = self._mode
        h = functional.try_cell(mode, self._parameters, input, hx, None, self._frozen)
        return self._run(mode, input, hx)[0] if h is None else h


class LSTMCell(_Cell):
    """One step of a long short-term memory (formula: `LSTM`). Drop-in for `torch.nn.LSTMCell`.

    Shapes: input [B, I], hx = (h [B, H], c [B, H]) -> (h' [B, H], c' [B, H]); or [I], ([H], [H]).
    hx None is zeros.

    >>> import torch, rnnfast
    >>> h, c = rnnfast.LSTMCell(10, 20)(torch.randn(3, 10))
    >>> h.shape, c.shape
    (torch.Size([3, 20]), torch.Size([3, 20]))

    Args: input_size, hidden_size, bias=True, device=None, dtype=None.

    Raises: what `torch.nn.LSTMCell` raises, with its texts.

    Source: Hochreiter and Schmidhuber 1997, Gers et al. 2000.
    """

    _name, _mode = "LSTMCell", "lstm"

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """-> (h', c'); see the class."""
        if hx is None:
            hx = (None, None)
        elif isinstance(hx, Tensor):
            raise TypeError("lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor")
        elif len(hx) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
        h, c = hx
        done = functional.try_cell("lstm", self._parameters, input, h, c, self._frozen)
        return self._run("lstm", input, h, c) if done is None else done


class GRUCell(_Cell):
    """One step of a gated recurrent unit (formula: `GRU`). Drop-in for `torch.nn.GRUCell`.

    Shapes: input [B, I], hx [B, H] -> [B, H]; or [I], [H] -> [H]. hx None is zeros.

    >>> import torch, rnnfast
    >>> rnnfast.GRUCell(10, 20)(torch.randn(3, 10)).shape
    torch.Size([3, 20])

    Args: input_size, hidden_size, bias=True, device=None, dtype=None.

    Raises: what `torch.nn.GRUCell` raises, with its texts.

    Source: Cho et al. 2014.
    """

    _name, _mode = "GRUCell", "gru"

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """-> h'; see the class."""
        h = functional.try_cell("gru", self._parameters, input, hx, None, self._frozen)
        return self._run("gru", input, hx)[0] if h is None else h


def freeze(model: Module) -> Module:
    """Packs the weights of the recurrent layers and cells in `model` once, for inference -> the same model.

    A call packs W_ih and W_hh before it multiplies with them, or, of one step, turns them on the way, which
    takes most of its time. A frozen layer has them packed, so a stream of steps is up to 1.7 times as fast.
    That is for calls of up to a dozen steps that record no graph (`torch.no_grad`, `torch.inference_mode`),
    of RNN, LSTM, GRU (without projections) and their cells, in float32 and float64 on the CPU; other calls
    and layers run as ever. The packed copies take as much memory as the weights.

    Weights are expected to stay as they are: `model.train()` takes the packed copies away, and so does
    `unfreeze`; a copy of the model, or one that was saved and loaded, has none. Changes of a weight that
    torch counts in its `_version` (`load_state_dict`, `w.mul_()`, most optimizers) or that put another tensor
    in its place make a layer read the weights themselves. Nobody counts those through `w.data`, numpy, a
    tensor or a process that shares the memory, and of an optimizer with fused=True: call `freeze` again.

    Raises RuntimeError for a model in training mode, and for weights of another dtype, not on the CPU, not
    contiguous, or made in inference mode. Then nothing is frozen that was not.

    >>> import torch, rnnfast
    >>> model = rnnfast.freeze(rnnfast.LSTM(10, 20).eval())
    >>> with torch.inference_mode():
    ...     y, state = model(torch.randn(1, 1, 10))
    """
    packed = []
    for name, module in model.named_modules():
        if isinstance(module, _Freezable):
            if module.training:
                raise RuntimeError(
                    f"rnnfast.freeze: expected a model in eval mode, got {name or type(module).__name__} in "
                    "training mode: call model.eval() first"
                )
            try:
                packed.append((module, module._packed()))
            except RuntimeError as error:
                raise RuntimeError(f"{error} (in {name or type(module).__name__})") from None
    for module, weights in packed:
        module._frozen = weights
    return model


def unfreeze(model: Module) -> Module:
    """Takes back `freeze`: every layer reads its weights at every call -> the same model."""
    for module in model.modules():
        if isinstance(module, _Freezable):
            module._frozen = None
    return model


def _check_size(name, value):
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name} must be greater than zero, got {value}")


class DeepTransitionRNN(Module):
    """Deep-transition RNN: each step is a multi-layer perceptron over [x, h]; batch first.

    .. code-block:: text

        a = [x, h];  a = leaky_relu(W_l a + b_l) for every l but the last;  h' = W a + b;  h starts at zero

    Shapes: x [B, T, I] and h0 [B, H] -> (all h [B, T, H], last h [B, H]). With output_size the head `ff`
    reads the last state -> [B, O], or with step_output every state -> [B, T, O]. Unbatched: x [T, I],
    h0 [H], and no B in the results.

    The perceptron is kept as `rnn`, a Sequential of Linear, LeakyReLU, ..., Linear, so that state_dict is
    that of the hand-written model. Its weights are read at every forward; its modules are not called.

    >>> import torch, rnnfast
    >>> model = rnnfast.DeepTransitionRNN(40, 30, output_size=2, depth=3, width=100)
    >>> model(torch.randn(8, 150, 40)).shape
    torch.Size([8, 2])

    Args:
        input_size, hidden_size: I and H.
        output_size: O, width of the head; None is no head.
        depth: how many Linear layers one step has, at least 1.
        width: width of the inner layers; None is hidden_size.
        negative_slope: of LeakyReLU, at least 0.
        bias: whether the Linear layers, the head too, have one.
        step_output: the head reads every state, not only the last.

    Raises:
        TypeError, ValueError: arguments of a wrong type or out of range, x of neither 2 nor 3 dimensions.
        RuntimeError: x or h0 of a wrong size, no time step.

    Source: Pascanu et al. 2013, "How to construct deep recurrent neural networks".
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        depth: int = 3,
        width: int | None = None,
        negative_slope: float = 0.01,
        bias: bool = True,
        step_output: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        width = hidden_size if width is None else width
        _check_size("input_size", input_size)
        _check_size("hidden_size", hidden_size)
        _check_size("depth", depth)
        _check_size("width", width)
        if output_size is not None:
            _check_size("output_size", output_size)
        for name, value in (("bias", bias), ("step_output", step_output)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
        if step_output and output_size is None:
            raise ValueError("step_output needs output_size: without a head every state is returned anyway")
        if not isinstance(negative_slope, (int, float)) or isinstance(negative_slope, bool):
            raise TypeError(f"negative_slope should be a number, got: {type(negative_slope).__name__}")
        if not 0 <= negative_slope < float("inf"):
            raise ValueError(f"negative_slope must be finite and at least 0, got {negative_slope}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = output_size
        self.negative_slope = float(negative_slope)
        self.step_output = step_output

        sizes = [input_size + hidden_size, *[width] * (depth - 1), hidden_size]
        modules = []
        for n_in, n_out in zip(sizes, sizes[1:], strict=False):
            modules += [Linear(n_in, n_out, bias, device=device, dtype=dtype), LeakyReLU(negative_slope)]
        self.rnn = Sequential(*modules[:-1])
        self.ff = None
        if output_size is not None:
            self.ff = Linear(hidden_size, output_size, bias, device=device, dtype=dtype)

    def _weights(self):
        linears = list(self.rnn._modules.values())[::2]
        biases = [_read(m, "bias") for m in linears]
        return [_read(m, "weight") for m in linears], [] if biases[0] is None else biases

    def forward(self, x: Tensor, h0: Tensor | None = None):
        """-> (all h, last h), or the head's output; see the class."""
        if x.dim() not in (2, 3):
            raise ValueError(f"DeepTransitionRNN: Expected input to be 2D or 3D, got {x.dim()}D instead")
        weights, biases = self._weights()
        _check_dtype(x, weights[0])
        _check_features(x, self.input_size)
        if h0 is not None:
            expected = (*x.shape[:-2], self.hidden_size)
            if h0.shape != expected:
                raise RuntimeError(f"Expected hidden size {expected}, got {list(h0.shape)}")
        y, h = functional.deep_transition(x, h0, weights, biases, self.negative_slope)
        if self.ff is None:
            return y, h
        return self.ff(y if self.step_output else h)

    def explain(self, x: Tensor, h0: Tensor | None = None) -> str:
        """One sentence: which path this input takes, and why."""
        weights, biases = self._weights()
        return functional.explain(type(self).__name__, x, [h0], [*weights, *biases])
