"""The oracle for lengths, resets and all states: each row by itself, step by step, in letters."""

import helpers
import torch

import rnnfast

# As helpers.LAYERS: the kinds, and how they are stacked
STACKS = {"one": {}, "two_layers": {"num_layers": 2}}
TWO_WAYS = {"bidirectional": {"bidirectional": True, "num_layers": 2}}


def layer(kind, input_size=4, hidden_size=6, **options):
    """A module of ours of this kind (of helpers.LAYERS), seeded, in float64 unless a dtype is given."""
    name, extra = helpers.LAYERS[kind]
    torch.manual_seed(0)
    return getattr(rnnfast, name)(input_size, hidden_size, **{"dtype": torch.float64, **extra, **options})


def states(module, B, seed=50, **kwargs):
    """(h,) or (h, c) for the layer: seeded leaves [L·D, B, P], [L·D, B, H]."""
    n = module.num_layers * (1 + module.bidirectional)
    sizes = [module.proj_size or module.hidden_size, module.hidden_size][: 1 + (module.mode == "LSTM")]
    dtype = module.weight_hh_l0.dtype
    return tuple(
        helpers.draw(n, B, size, seed=seed + i, dtype=dtype, **kwargs).requires_grad_()
        for i, size in enumerate(sizes)
    )


def as_argument(state):
    """(h,) or (h, c) as a layer takes it."""
    return state if len(state) == 2 else state[0]


def step(mode, x, state, w):
    """One row, one step: x [I], (h,) or (h, c) -> the same of the next step."""
    w_ih, w_hh, b_ih, b_hh, w_hr = w
    h = state[0]
    u, v = w_ih @ x + b_ih, w_hh @ h + b_hh
    if mode == "LSTM":
        i, f, g, o = (u + v).chunk(4)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if w_hr is None else w_hr @ h), c
    if mode == "GRU":
        (u_r, u_z, u_n), (v_r, v_z, v_n) = u.chunk(3), v.chunk(3)
        z = (u_z + v_z).sigmoid()
        return ((1 - z) * (u_n + (u_r + v_r).sigmoid() * v_n).tanh() + z * h,)
    return ((u + v).tanh() if mode == "RNN_TANH" else (u + v).relu(),)


def by_loop(module, x, state, lengths=None, resets=None, anew=None):
    """x [T, B, I] and (h,) or (h, c) through the layer's weights -> y, last states, states of every step.

    anew: what a reset begins from, as `state`, or of one row; None is zeros.
    """
    T, B, _ = x.shape
    D = 1 + module.bidirectional
    lasts, every = [], []
    for k in range(module.num_layers):
        outputs = []
        for d in range(D):
            n = k * D + d
            suffix = f"_l{k}" + "_reverse" * d
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            w = [getattr(module, name + suffix, None) for name in names]
            rows, last = [], []
            for b in range(B):
                s = tuple(t[n, b] for t in state)
                zeros = [torch.zeros_like(t) for t in s]
                length = T if lengths is None else int(lengths[b])
                steps = [tuple(zeros)] * T
                for t in reversed(range(length)) if d else range(length):
                    if resets is not None and resets[t, b]:
                        s = tuple(zeros) if anew is None else tuple(a[n, b % a.size(1)] for a in anew)
                    s = steps[t] = step(module.mode, x[t, b], s, w)
                rows.append(steps)
                last.append(s)
            lasts.append([torch.stack(s) for s in zip(*last, strict=True)])  # of h, of c: [B, .]
            of_steps = [
                torch.stack([torch.stack([rows[b][t][i] for b in range(B)]) for t in range(T)])
                for i in range(len(state))
            ]
            every.append(of_steps)  # [T, B, .]
            outputs.append(of_steps[0])
        x = torch.cat(outputs, -1)
    stacked = [[torch.stack(s) for s in zip(*all_of, strict=True)] for all_of in (lasts, every)]
    return x, as_argument(tuple(stacked[0])), as_argument(tuple(stacked[1]))


def gradients(outputs, inputs):
    """Those of a scalar that depends on every element of the outputs, for inputs that need one."""
    return torch.autograd.grad(helpers.total(outputs), inputs, allow_unused=True, materialize_grads=True)
