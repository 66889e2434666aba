"""Why gradients vanish and explode: the norm of ∂L/∂h_t over time, cause by cause, and what clipping does.

The task: the sign of the first step is the class, all later steps are noise, and the loss stands at the end.
The net can only learn if the gradient reaches the first step. Each ∂L/∂h_t is a product of one factor
∂h_s/∂h_{s-1} per step: the same weights again and again, times the slope of the activation. The picture takes
these causes one by one.

    python -m examples.vanishing
"""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import rnnfast
from examples import common


def task(args):
    """Noise x [batch, steps, 1] whose first step is ±1, and the class y [batch]: was it +1?"""
    x, y = args.noise * torch.randn(args.batch, args.steps, 1), torch.randint(2, (args.batch,))
    x[:, 0, 0] = 2.0 * y - 1
    return x, y


def cells(hidden):
    """The four nets as they are initialised, one layer each (depth 3 for the deep-transition RNN).

    And an LSTM that starts with its forget gate open: its bias of 3 keeps σ(3) = 95 % of c at each step.
    """
    keeping = rnnfast.LSTM(1, hidden, batch_first=True)
    nn.init.constant_(keeping.bias_ih_l0[hidden : 2 * hidden], 3.0)
    return {
        "deep-transition RNN": rnnfast.DeepTransitionRNN(1, hidden, depth=3),
        "Elman RNN": rnnfast.RNN(1, hidden, batch_first=True),
        "LSTM": rnnfast.LSTM(1, hidden, batch_first=True),
        "GRU": rnnfast.GRU(1, hidden, batch_first=True),
        "LSTM, forget bias 3": keeping,
    }


@torch.no_grad()
def elman(hidden, activation, scale=1.0):
    """An Elman RNN whose recurrent weights, scale · a random rotation, make every vector scale times as long.

    activation: "tanh", "relu", or a number, the slope of a leaky relu below zero (1: no activation at all).
    """
    rotation = scale * nn.init.orthogonal_(torch.empty(hidden, hidden))
    if isinstance(activation, str):
        net = rnnfast.RNN(1, hidden, nonlinearity=activation, batch_first=True)
        net.weight_hh_l0.copy_(rotation)
        return net
    # depth 2, W_2 leaky_relu(W_1 [x, h] + b_1) + b_2: an Elman RNN with leaky relu where W_2 is the identity
    net = rnnfast.DeepTransitionRNN(1, hidden, depth=2, negative_slope=activation)
    net.rnn[0].weight[:, 1:] = rotation
    nn.init.eye_(net.rnn[2].weight)
    nn.init.zeros_(net.rnn[2].bias)
    return net


@torch.no_grad()
def linear(hidden, largest):
    """h' = W_x x + W_h h (depth 1); W_h is random and symmetric, and its largest eigenvalue is given.

    One W again and again makes a vector grow by that eigenvalue at every step. A new W each time makes it
    grow by half of that (the semicircle law): no direction is favoured twice.
    """
    net = rnnfast.DeepTransitionRNN(1, hidden, depth=1, bias=False)
    w = torch.randn(hidden, hidden)
    w += w.T.clone()
    net.rnn[0].weight[:, 1:] = largest / torch.linalg.eigvalsh(w).abs().max() * w
    return net


class Untied(nn.Module):
    """Another net at every step, as in a deep feed-forward net. Good for one sequence, step by step."""

    def __init__(self, nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.coming = iter(self.nets)

    def forward(self, x, state):
        return next(self.coming)(x, state)


def learn(net, args, clip, title, optimizer=torch.optim.Adam, lr=None):
    """Trains on fresh batches of the task. Returns loss and gradient norm (before clipping) of every step."""
    model = nn.ModuleDict({"net": net, "head": nn.Linear(args.hidden, 2)})
    optimizer = optimizer(model.parameters(), lr or args.lr)
    losses, norms = [], []
    for _ in tqdm(range(args.iterations), desc=title, unit="step"):
        x, y = task(args)
        loss = cross_entropy(model.head(common.top_state(model.net(x)[1])), y)
        losses.append(loss.item())
        norms.append(common.train_step(model, loss, optimizer, clip))
    return {"losses": losses, "norms": norms}


def main(argv=None):
    parser = common.command_line(__doc__.splitlines()[0], batch=32, lr=3e-3, clip=1.0, hidden=64)
    parser.add_argument("--steps", type=int, default=40, help="steps of a sequence")
    parser.add_argument("--noise", type=float, default=0.1, help="spread of the steps after the first")
    parser.add_argument("--iterations", type=int, default=400, help="training steps")
    args = common.start(parser, argv)

    x, y = task(args)
    head = nn.Linear(args.hidden, 2).double()  # float32 would end at 1e-45

    def norms(net, parts=1):
        return common.gradient_per_step(net.double(), x.double(), lambda h: cross_entropy(head(h), y), parts)

    by_cell = {name: norms(net) for name, net in cells(args.hidden).items()}
    by_weights = {}
    for largest in (0.9, 1.1):
        by_weights[f"one W, eigenvalue {largest}"] = norms(linear(args.hidden, largest))
        fresh = Untied(linear(args.hidden, largest) for _ in range(args.steps))
        by_weights[f"a new W each step, eigenvalue {largest}"] = norms(fresh)
    activations = {"none": 1.0, "leaky relu, slope 0.5": 0.5, "relu": "relu", "tanh": "tanh"}
    by_activation = {name: norms(elman(args.hidden, activation)) for name, activation in activations.items()}
    scales = [("tanh", scale) for scale in (0.5, 0.9, 1.1, 1.5)] + [
        ("relu", scale) for scale in (1.0, 1.5, 2.0)
    ]
    by_scale = {
        f"{name}, {scale} × rotation": norms(elman(args.hidden, name, scale)) for name, scale in scales
    }

    learnt = {name: learn(net, args, args.clip, name) for name, net in cells(args.hidden).items()}
    explosive = elman(args.hidden, "relu", 1.5)
    clipped = {  # plain gradient descent: Adam divides by the gradient's size, which hides its explosion
        name: learn(copy.deepcopy(explosive), args, clip, name, torch.optim.SGD, lr=0.01)
        for name, clip in ((f"clipped to {args.clip:g}", args.clip), ("not clipped", float("inf")))
    }
    results = {
        "at_the_start": {
            "cell": by_cell,
            "weights": by_weights,
            "activation": by_activation,
            "scale": by_scale,
        },
        "learnt": learnt,
        "clipping": clipped,
    }

    title = f"The sign of step 1 decides: {args.steps} steps, {args.hidden} hidden units"
    figure, axes = common.panels(title, 3, rows=2)
    titles = ("cell by cell", "the same W again and again", "the activation, one rotation", "the scale")
    for axis, title, curves in zip(axes, titles, results["at_the_start"].values(), strict=False):
        for name, values in curves.items():
            dash = "--" if name.startswith(("a new", "relu, ", "LSTM, ")) else "-"
            axis.semilogy(range(1, args.steps + 1), values, dash, label=name)
        common.label(axis, f"Before training: {title}", "time step t", "‖∂L/∂h_t‖")
    for name, curve in learnt.items():
        axes[4].plot(smooth(curve["losses"]), "--" if "," in name else "-", label=name)
    common.label(axes[4], "Learning the task", "training step", "cross entropy [nats], mean of 20 steps")
    for name, curve in clipped.items():
        axes[5].semilogy(curve["norms"], lw=0.7, label=f"{name}: last loss {smooth(curve['losses'])[-1]:.2g}")
    axes[5].axhline(args.clip, color="0.4", ls=":")
    common.label(
        axes[5],
        "Clipping (gradient descent, relu, 1.5 × rotation)",
        "training step",
        "gradient norm before clipping",
    )

    print(f"{'':<38}‖∂L/∂h_1‖ / ‖∂L/∂h_T‖")
    for curves in results["at_the_start"].values():
        for name, values in curves.items():
            print(f"{name:<38}{values[0] / values[-1]:.1e}")
    for name, curve in (learnt | clipped).items():
        print(f"{name:<38}loss {smooth(curve['losses'])[0]:.3g} → {smooth(curve['losses'])[-1]:.3g}")
    return common.save(args, "vanishing", figure, results)


def smooth(values, width=20):
    """Running mean over width values, or all there are."""
    return torch.tensor(values).unfold(0, min(width, len(values)), 1).mean(1).tolist()


if __name__ == "__main__":
    main()
