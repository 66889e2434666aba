"""What callers notice of `rnnfast.enable` beside numbers: strides, errors, and hooks that end it."""

import subprocess
import sys

import pytest
import torch
from enable_helpers import off, passed, taken  # noqa: F401 (a fixture)
from torch import nn

import rnnfast
from tests.helpers import ROOT, draw

OPTIONS = [{}, {"num_layers": 2, "dropout": 0.5}, {"bidirectional": True}]


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_results_have_torchs_strides_also_with_batch_first(kind, grad):
    x = draw(3, 5, 4, dtype=torch.float32)
    for options in OPTIONS:
        module, said = getattr(nn, kind)(4, 6, batch_first=True, **options), []
        for on in (False, True):
            (rnnfast.enable if on else rnnfast.disable)()
            with grad():
                torch.manual_seed(1)
                y, state = module(x)
            states = state if kind == "LSTM" else [state]
            said.append([(t.shape, t.stride()) for t in (y, *states)])
            y.transpose(0, 1).view(15, -1)
        assert said[0] == said[1], options
    assert taken() == len(OPTIONS) and not passed()


def _layers(dropout):
    module, state = nn.LSTM(4, 6, 2), torch.zeros(2, 3, 6)
    weights = module._flat_weights
    return torch.lstm(torch.zeros(5, 3, 4), [state] * 2, weights, True, 2, dropout, True, False, False)


def _nested():
    module, state = nn.LSTM(4, 6), torch.zeros(1, 2, 6)
    rows = torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(3, 4)])
    with torch.inference_mode():
        return torch.lstm(rows, [state] * 2, module._flat_weights, True, 1, 0.0, False, False, True)


WRONG = {
    "negative dropout": lambda: _layers(-0.5),
    "dropout NaN": lambda: _layers(float("nan")),
    "nested rows": _nested,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_torchs_error(wrong):
    said = []
    for on in (False, True):
        (rnnfast.enable if on else rnnfast.disable)()
        with pytest.raises(RuntimeError) as error:
            WRONG[wrong]()
        said.append((error.type, str(error.value)))
    assert said[0] == said[1] and not taken()


ENDS_IT = """
import torch, rnnfast
module, x, kept = torch.nn.LSTM(4, 6), torch.randn(5, 3, 4), []

def pack(tensor):
    rnnfast.disable()
    kept.extend(bytearray(b"\\xff" * n) for n in (16, 24, 32, 40, 48) for _ in range(200))
    return tensor

for _ in range(100):
    rnnfast.enable()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)[0].sum().backward()
    kept.clear()
print(rnnfast.info.counts())
"""


def test_a_hook_within_a_call_may_end_it():
    found = subprocess.run([sys.executable, "-c", ENDS_IT], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "{'aten::lstm.input': {'taken': 100}}"
