"""Every public name as a typed program uses it: `mypy --strict` accepts this file (make lint)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import rnnfast
from rnnfast import functional, info, reference, testing


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = rnnfast.LSTM(5, 8, num_layers=2, batch_first=True, learn_initial_state=True)
        self.steps: list[rnnfast.LSTMCell | rnnfast.GRUCell | rnnfast.RNNCell] = [
            rnnfast.LSTMCell(8, 8),
            rnnfast.GRUCell(8, 8, bias=False),
            rnnfast.RNNCell(8, 8, nonlinearity="relu"),
        ]
        self.gru: rnnfast.GRU = rnnfast.GRU(8, 8)
        self.rnn: rnnfast.RNN = rnnfast.RNN(8, 8, nonlinearity="relu", dtype=torch.float64)
        self.deep = rnnfast.DeepTransitionRNN(8, 8, depth=2, width=16)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, (h, c) = self.layer.forward(x, lengths=lengths)
        said: str = self.layer.explain(x)
        assert said
        return y.sum() + h.sum() + c.sum()


def models() -> Iterator[nn.Module]:
    tagger: Tagger = rnnfast.convert(Tagger(), verbose=True)
    yield rnnfast.revert(tagger)
    frozen: Tagger = rnnfast.freeze(tagger.eval())
    yield rnnfast.unfreeze(frozen)


def process() -> None:
    rnnfast.enable()
    with rnnfast.enabled():
        counts: dict[str, dict[str, int]] = info.counts()
    info.reset_counts()
    rnnfast.disable()
    version: str = rnnfast.__version__
    print(version, counts, info.describe(), info.isas(), info.isa(), info.split(), info.products())
    info.set_isa(None)
    info.set_split("rows")
    info.set_batch_invariant(None)
    info.set_cache_mb(64.5)
    info.set_cuda_kernel(None)
    info.set_cuda_device(None)
    memory: dict[str, int] = info.cache()
    given_back: int = info.empty_cache()
    print(memory, given_back, info.is_batch_invariant(), info.cuda_kernel(), info.cuda_failure())
    with info.profile() as seconds:
        last: dict[str, object] = info.last_run()
    print(seconds["elapsed"], last)
    table = rnnfast.decompositions()
    print(len(table))


def functions(x: Tensor, w: list[Tensor]) -> Tensor:
    y, (h, c) = functional.lstm(x, None, [w], resets=torch.zeros(5, 3, dtype=torch.bool))
    z, hn = functional.gru(y, h, [w], lengths=torch.tensor([3, 5, 0]))
    u, hn = functional.rnn(z, hn, [w], nonlinearity="relu")
    v, hn = functional.deep_transition(u, hn[0], w, [], 0.01)
    plain = reference.recurrent("lstm", x, h, c, *w)
    deep, hn = reference.deep_transition(v, hn, w, [])
    return deep + hn + plain[0]


def cells(u: Tensor, v: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
    of_lstm = reference.lstm_cell(u, v, h, c)
    without_c = [of(u, v, h, None)[0] for of in (reference.gru_cell, reference.rnn_tanh_cell)]
    return [*of_lstm, *without_c, reference.rnn_relu_cell(u, v, h, None)[0]]


def oracle(x: Tensor) -> float:
    testing.assert_close_to_oracle([x], [x], [x])
    timing: testing.Timing = testing.interleave({"one": lambda: x + 1}, rounds=3)
    devices: list[str] = testing.DEVICES
    print(devices, testing.DTYPES, testing.TOLERANCE, timing.median("one"))
    return testing.error(x, x)
