"""The raw ops given arguments spoiled at random: they refuse or compute them, and never crash.

Run as a script it is the fuzz of one op: python tests/test_bad_input_fuzz.py OP FIRST_SEED COUNT. A test does
that in its own process: a crash is then one failing test, and the last line printed is the seed that did it.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import torch
from bad_input_helpers import BUILDERS, DIFFERENTIABLE, MODES, H, call

import rnnfast


def corrupt_tensor(rng, t):
    """One tensor made wrong, or merely odd, in one seeded way."""
    if t is None:
        return torch.randn([rng.randint(0, 8) for _ in range(rng.randint(0, 4))])
    if t.layout != torch.strided or t.is_meta:
        return t
    dim = rng.randrange(t.dim()) if t.dim() else 0
    shape = list(t.shape)

    def resized(size):
        shape[dim : dim + 1] = [size] if shape else []
        return torch.randn(shape).to(t.dtype) if t.is_floating_point() else torch.ones(shape, dtype=t.dtype)

    def strided():
        wide = torch.stack([t, torch.zeros_like(t)], -1)
        return wide[..., 0]

    ways = [
        lambda: resized(shape[dim] + 1 if shape else 0),
        lambda: resized(max(0, shape[dim] - 1) if shape else 0),
        lambda: resized(0),
        lambda: resized(1),
        lambda: resized(rng.choice([2, 16, 17, 64])),
        lambda: t.unsqueeze(dim),
        lambda: t.flatten(),
        lambda: t.transpose(0, -1) if t.dim() else t,
        lambda: torch.tensor(0.5),
        lambda: torch.empty(0),
        lambda: None,
        lambda: t.double(),
        lambda: t.to(rng.choice([torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64])),
        lambda: t.to("meta"),
        lambda: t[:1].expand(t.shape) if t.dim() and t.shape[0] else t,
        lambda: t.flip(dim) if t.dim() else t,
        lambda: t[..., :0] if t.dim() else t,
        strided,
        lambda: t.to_sparse() if t.dim() else t,
    ]
    return rng.choice(ways)()


def corrupt(rng, args):
    """Change one argument in place."""
    name = rng.choice(list(args))
    value = args[name]
    if name == "mode":
        args[name] = rng.choice([*MODES, "", "nothing"])
    elif name == "batch_sizes":
        sizes = [rng.randint(-1, 4) for _ in range(rng.randint(0, 5))]
        args[name] = rng.choice([None, torch.tensor(sizes, dtype=torch.int64), corrupt_tensor(rng, value)])
    elif isinstance(value, bool):
        args[name] = not value
    elif isinstance(value, float):
        args[name] = rng.choice([0.0, -1.0, 0.5, 1.0])
    elif name == "needs":
        args[name] = [rng.random() < 0.5 for _ in range(rng.choice([15, 15, 15, 0, 13, 16, 40]))]
    elif isinstance(value, list):
        value = list(value)
        where = rng.randrange(len(value)) if value else 0
        way = rng.randrange(4)
        if way == 0 and value:
            value[where] = corrupt_tensor(rng, value[where])
        elif way == 1 and value:
            del value[where]
        elif way == 2:
            value.insert(where, torch.randn(H, H))
        else:
            value.reverse()
        args[name] = value
    else:
        args[name] = corrupt_tensor(rng, value)
    return name


def expected_shapes(op, args):
    """The shapes of what the op returned, from the arguments it accepted. None where any shape is right."""
    x, h0 = args["x"], args["h0"]
    if op == "recurrent":
        facts = helpers.MODES[args["mode"]]
        D, P, has_cell = h0.shape[0], h0.shape[2], facts["has_cell"]
        N = x[..., 0].numel() if x.shape[-1] else x.shape[:-1].numel()
        H = args["w_hh"].shape[0] // facts["gates"]
        padded, slots = (H + 15) // 16 * 16, facts["slots"]
        if slots == 1 and x.dtype in (torch.float32, torch.float64):
            slots = 0  # y is all that backward needs
        yield (*x.shape[:-1], D * P)
        yield tuple(h0.shape)
        yield tuple(args["c0"].shape) if has_cell else (0,)
        yield (D * (N + 1) * slots * padded if args["save"] else 0,)
        yield (D * N * padded if args["save"] and has_cell else 0,)
        yield (*x.shape[:-1], D * H) if args["all_states"] and has_cell else (0,)
    elif op == "recurrent_backward":
        for name, need in zip(DIFFERENTIABLE, args["needs"], strict=True):
            yield tuple(args[name].shape) if need and args[name] is not None else (0,)
    elif op == "deep_transition":
        inner = sum((w.shape[0] + 15) // 16 * 16 for w in args["weights"][:-1])
        yield (*x.shape[:-1], h0.shape[-1])
        yield tuple(h0.shape)
        yield (x.shape[:-1].numel() * inner if args["save"] and inner else 0,)
    else:
        yield tuple(x.shape) if args["need_dx"] else (0,)
        yield tuple(h0.shape) if args["need_dh0"] else (0,)
        yield from (tuple(t.shape) for t in [*args["weights"], *args["biases"]])


def contiguous(value):
    """A fresh, contiguous copy of a tensor or of the tensors of a list."""
    if isinstance(value, torch.Tensor):
        return value.clone(memory_format=torch.contiguous_format)
    if isinstance(value, list):
        return [contiguous(v) if isinstance(v, torch.Tensor) else v for v in value]
    return value


def leaves_of(result):
    return [t for value in result for t in (value if isinstance(value, list) else [value])]


def fuzz_one(op, seed):
    """Corrupt valid arguments once to three times. Returns whether the op refused them."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    if op.startswith("recurrent"):
        mode = rng.choice(MODES)
        options = {
            "mode": mode,
            "both": rng.random() < 0.5,
            "proj": mode == "lstm" and rng.random() < 0.5,
            "packed": rng.random() < 0.5,
            "episodes": rng.random() < 0.5,
        }
        options["batch_first"] = not options["packed"] and rng.random() < 0.5
    else:
        options = {"depth": rng.randint(1, 4), "bias": rng.random() < 0.7}
    args = BUILDERS[op](**options)
    changed = [corrupt(rng, args) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    try:
        result = call(op, args)
    except (RuntimeError, ValueError, TypeError):
        return True
    assert not any(isinstance(t, torch.Tensor) and t.is_meta for t in leaves_of(args.values())), changed
    found = leaves_of(result)
    shapes = list(expected_shapes(op, args))
    if op.startswith("deep") and not args["biases"]:
        shapes = shapes[: len(found)]
    assert [tuple(t.shape) for t in found] == shapes, (changed, [tuple(t.shape) for t in found], shapes)
    assert all(t.device.type == "cpu" for t in found), changed
    again = leaves_of(call(op, {name: contiguous(value) for name, value in args.items()}))
    for a, b in zip(found, again, strict=True):
        # Also true of what pads the saved buffers: every byte of a result is written.
        assert torch.isfinite(a).all(), changed
        torch.testing.assert_close(a, b, msg=lambda text: f"{changed}: strides count: {text}")
    return False


def fuzz(op, first, count):
    refused = 0
    for seed in range(first, first + count):
        print("seed", seed, flush=True)
        refused += fuzz_one(op, seed)
    print(f"refused {refused} accepted {count - refused}")


@pytest.mark.parametrize("op", BUILDERS)
def test_corrupted_arguments_are_refused_or_computed_and_never_crash(op):
    root = str(Path(rnnfast.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, op, "0", "600"],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{op}: code {done.returncode} after {last}\n{done.stderr[-3000:]}"
    refused, accepted = (int(n) for n in re.findall(r"\d+", last[0]))
    assert refused > 200 and accepted > 20, "the fuzz must meet both ends"


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
