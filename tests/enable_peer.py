"""torch.nn's layers and cells on random shapes and options, with gradients: run without rnnfast, or with it.

A program, so that torch's values can come from a process that never imports rnnfast:
python tests/enable_peer.py FILE [rnnfast]
"""

import itertools
import random
import sys

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def leaves(out):
    """All tensors of an output."""
    if isinstance(out, torch.Tensor):
        return [out]
    return [t for part in out if part is not None for t in leaves(part)]


def floating(tensors):
    return [t for t in tensors if t.is_floating_point()]


def cases(n, seed=0):
    """(name, module, input, state or None, how to call it), each made with a seed of its own."""
    draw = random.Random(seed)
    for i in range(n):
        torch.manual_seed(i)
        dtype = draw.choices(DTYPES, (6, 3, 1, 1))[0]
        kind = draw.choice(("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"))
        I, H, B, T = (draw.randint(1, top) for top in (9, 40, 5, 9))  # noqa: E741
        options = {"bias": draw.random() < 0.8, "dtype": dtype}
        if kind.startswith("RNN"):
            options["nonlinearity"] = draw.choice(("tanh", "relu"))
        shape, packed = (B, I), False
        if not kind.endswith("Cell"):
            options |= {"num_layers": draw.randint(1, 3), "bidirectional": draw.random() < 0.3}
            options |= {"batch_first": draw.random() < 0.5}
            if options["num_layers"] > 1 and draw.random() < 0.3:
                options["dropout"] = 0.4
            if kind == "LSTM" and H > 1 and draw.random() < 0.2:
                options["proj_size"] = draw.randint(1, H - 1)
            packed = draw.random() < 0.25
            shape = (T, I) if draw.random() < 0.2 else (B, T, I) if options["batch_first"] else (T, B, I)
        module = getattr(nn, kind)(I, H, **options)
        x = torch.randn(shape, dtype=dtype)
        if packed:
            x = pack_sequence([torch.randn(draw.randint(1, T), I, dtype=dtype) for _ in range(B)], False)
        elif draw.random() < 0.2:
            x = x.repeat_interleave(2, -1)[..., ::2]  # not contiguous
        with_state, grad = draw.random() < 0.5, draw.choice(("grad", "grad", "no_grad", "inference"))
        yield (
            f"{i} {kind} {options} {tuple(shape)} {packed=} {with_state=} {grad}",
            module,
            x,
            with_state,
            grad,
        )


def run(module, x, with_state, grad):
    """Outputs, then gradients of the parameters."""
    how = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[grad]
    with how():
        state = None
        if with_state:
            first = module(x)
            state = first[1] if isinstance(first, tuple) and not isinstance(module, nn.LSTMCell) else first
            if isinstance(module, nn.LSTMCell):
                state = tuple(t.detach() for t in first)
            elif isinstance(state, tuple):
                state = tuple(t.detach() for t in state)
            else:
                state = state.detach()
        torch.manual_seed(5)
        out = floating(leaves(module(x, state)))
    if grad != "grad":
        return out
    total = sum(
        (t.float() * torch.linspace(-1, 2, t.numel(), device=t.device).view(t.shape)).sum() for t in out
    )
    return [*out, *torch.autograd.grad(total, list(module.parameters()))]


def results(n, device="cpu"):
    return [
        [name, [t.detach().clone() for t in run(module.to(device), x.to(device), *how)]]
        for name, module, x, *how in itertools.islice(cases(n), n)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)  # as tests begin: on some processors torch's own products round by it
    if "rnnfast" in sys.argv[2:]:
        import rnnfast

        rnnfast.enable()
    torch.save(results(400), sys.argv[1])
    assert ("rnnfast" in sys.modules) == ("rnnfast" in sys.argv[2:])
