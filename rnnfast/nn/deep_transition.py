"""The deep-transition RNN as a module, with a head."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import LeakyReLU, Linear, Module, Sequential

from .. import _paths, functional
from ._common import check_dtype, check_features, read
from ._tools import ForTools, proxy_among
from ._twins import Face, face_of


def _check_size(name, value):
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name} must be greater than zero, got {value}")


class DeepTransitionRNN(ForTools, Module):
    """Deep-transition RNN: each step is a multi-layer perceptron over [x, h]; batch first.

        a = [x, h]
        a = leaky_relu(W_l a + b_l)      for every layer l of the perceptron but the last
        h' = W a + b                     h starts at zero

    Shapes: x [B, T, I] and h0 [B, H] -> (all h [B, T, H], last h [B, H]). With output_size the head `ff`
    reads the last state -> [B, O], or with step_output every state -> [B, T, O]. Unbatched: x [T, I],
    h0 [H], and no B in the results.

    The perceptron is kept as `rnn`, a Sequential of Linear, LeakyReLU, ..., Linear, so that state_dict is
    that of the hand-written model. Its weights are read at every forward, after pruning and norms of
    torch.nn.utils have made them; its modules are not called, and other hooks of theirs do not run.

    Examples:
        >>> import torch, rnnfast
        >>> model = rnnfast.DeepTransitionRNN(40, 30, output_size=2, depth=3, width=100)
        >>> model(torch.randn(8, 150, 40)).shape
        torch.Size([8, 2])

    Args:
        input_size: I, features of a step.
        hidden_size: H, units of the state.
        output_size: O, width of the head; None is no head.
        depth: how many Linear layers one step has, at least 1.
        width: width of the inner layers; None is hidden_size.
        negative_slope: of LeakyReLU, at least 0.
        bias: whether the Linear layers, the head too, have one.
        step_output: the head reads every state, not only the last.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an argument out of range, x of neither 2 nor 3 dimensions or of another dtype than the
            weights.
        RuntimeError: x or h0 of a wrong size, no time step, a Linear layer that something else has replaced.

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
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
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

    def _linears(self):
        return list(self.rnn._modules.values())[::2]

    def _weights(self):
        linears = self._linears()
        for i, m in enumerate(linears):
            if type(m).forward is not Linear.forward:  # an adapter, a quantized one
                raise RuntimeError(
                    f"DeepTransitionRNN reads the weights of rnn.{2 * i} and does not call it: expected "
                    f"torch.nn.Linear, got {type(m).__module__}.{type(m).__qualname__}"
                )
        biases = [read(m, "bias") for m in linears]
        return [read(m, "weight") for m in linears], [] if biases[0] is None else biases

    def forward(self, x: Tensor, h0: Tensor | None = None) -> Any:
        """-> (all h, last h), or the head's output; see the class."""
        proxy = proxy_among(x, h0)
        if proxy is not None:
            return self._fx_node(proxy, x, h0)
        if x.dim() not in (2, 3):
            raise ValueError(f"DeepTransitionRNN: Expected input to be 2D or 3D, got {x.dim()}D instead")
        for m in self._linears():
            for hook in m._forward_pre_hooks.values():
                if type(hook).__module__.startswith("torch.nn.utils."):  # they make the weight
                    hook(m, ())
        weights, biases = self._weights()
        check_dtype(x, weights[0])
        check_features(x, self.input_size)
        if h0 is not None:
            expected = (*x.shape[:-2], self.hidden_size)
            if h0.shape != expected:
                raise RuntimeError(f"Expected hidden size {expected}, got {list(h0.shape)}")
        y, h = functional.deep_transition(x, h0, weights, biases, self.negative_slope)
        if self.ff is None:
            return y, h
        return self.ff(y if self.step_output else h)

    def __prepare_scriptable__(self):
        return face_of(self, _Loop) if type(self) is DeepTransitionRNN else self

    def explain(self, x: Tensor, h0: Tensor | None = None) -> str:
        """One sentence: which path this input takes, and why."""
        weights, biases = self._weights()
        rows = x.size(0) if x.dim() == 3 else 1
        return _paths.explain(
            type(self).__name__, x, [h0], [*weights, *biases], rows, self.hidden_size, x.size(-2)
        )


class _Loop(Face):
    """`DeepTransitionRNN` written by hand, over modules of torch.nn: what torch.jit.script reads."""

    _behind = DeepTransitionRNN

    def forward(self, x: Tensor, h0: Tensor | None = None):
        batched = x.dim() == 3
        if not batched:
            x = x.unsqueeze(0)
        h = torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
        if h0 is not None:
            h = h0 if batched else h0.unsqueeze(0)
        states: list[Tensor] = []
        for x_t in x.unbind(1):
            h = self.rnn(torch.cat([x_t, h], -1))
            states.append(h)
        y = torch.stack(states, 1)
        if not batched:
            y, h = y.squeeze(0), h.squeeze(0)
        if self.ff is None:
            return y, h
        else:
            return self.ff(y if self.step_output else h)
