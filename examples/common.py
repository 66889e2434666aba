"""What the examples share: the command line, the training loop, gradients over time, pictures and results."""

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import torch
from tqdm import tqdm

from benchmarks import record

matplotlib.use("Agg")  # pictures go to files; no screen is needed
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

OPTIONS = {
    "epochs": "passes over the training data",
    "batch": "sequences in a batch",
    "lr": "learning rate of Adam at the start; it falls to zero along half a cosine",
    "clip": "the gradient of all parameters together is cut to this norm",
    "hidden": "hidden units",
}
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


def command_line(about, **defaults):
    """A parser with those of OPTIONS that are given a default here, and with what every example has."""
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=show)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=OPTIONS[name])
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights, the order and made-up data")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for picture and results")
    return parser


def start(parser, argv):
    """The arguments, read; the seed and the threads, set."""
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    return args


def train_step(model, loss, optimizer, clip):
    """One step of gradient descent on a scalar loss. Returns the gradient norm before clipping."""
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    if norm.isfinite():  # clipping cannot mend inf or NaN: such a batch is left out, and its loss tells of it
        optimizer.step()
    return norm.item()


def train_epoch(model, batches, loss_of, optimizer, clip):
    """One pass over the batches; loss_of(model, *batch) is a scalar. Returns the mean loss."""
    losses = []
    for batch in batches:
        loss = loss_of(model, *batch)
        losses.append(loss.item())
        train_step(model, loss, optimizer, clip)
    return sum(losses) / len(losses)


def fit(model, batches, loss_of, args, title):
    """Trains with Adam and clipped gradients. Returns the mean loss of every epoch."""
    optimizer = torch.optim.Adam(model.parameters(), args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    losses = []
    with tqdm(range(args.epochs), desc=title, unit="epoch") as bar:
        for _ in bar:
            losses.append(train_epoch(model, batches, loss_of, optimizer, args.clip))
            schedule.step()
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
    return losses


def top_state(state):
    """The hidden state [B, H] of the last layer."""
    state = state[0] if isinstance(state, tuple) else state
    return state[-1] if state.dim() == 3 else state


def gradient_per_step(net, x, loss_of, parts=1):
    """‖∂L/∂h_t‖ for t = 1 … T, through all later steps: net runs one step at a time, and every h_t is kept.

    x [B, T, I], batch first; L = loss_of(h_T [B, H]); h_t is the state of all layers ([L, B, H] or [B, H]).
    parts=2 takes an LSTM's h_t and c_t together.
    """
    state, kept = None, []
    for x_t in x.split(1, dim=1):
        _, state = net(x_t, state)
        kept.append((state if isinstance(state, tuple) else (state,))[:parts])
        for part in kept[-1]:
            part.retain_grad()
    loss_of(top_state(state)).backward()
    # nothing reads the last cell state: its gradient is zero
    gradients = [[part.grad.double() for part in h if part.grad is not None] for h in kept]
    return [sum(part.square().sum().item() for part in h) ** 0.5 for h in gradients]


def panels(title, columns, rows=1):
    """A figure and its axes, in reading order."""
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.9 * rows), squeeze=False)
    for axis in axes.flat:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # steps, epochs, years
    figure.suptitle(title, fontsize=13)
    return figure, list(axes.flat)


def label(axis, title, x, y, legend=True):
    """The words of one panel."""
    axis.set(title=title, xlabel=x, ylabel=y)
    if legend:
        axis.legend(fontsize=8)


def save(args, name, figure, results):
    """Writes name.png and name.json (the results, their settings and the machine) into the folder --out."""
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / f"{name}.png")
    plt.close(figure)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    command = " ".join(["python -m", f"examples.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    meta = record.meta(torch.get_num_threads(), command)
    text = json.dumps({"settings": settings, "meta": meta, **results}, indent=1)
    (args.out / f"{name}.json").write_text(text + "\n")
    print(f"Saved {args.out / name}.png and {name}.json")
    return results
