"""Sequence to class, loss at the end: four recurrent nets on real sequences, and what fusing them gains.

GunPoint (two classes, 150 steps), JapaneseVowels (nine speakers, 12 channels, 7 to 29 steps, packed) or
sequences of your own (--data file.npz) are learnt by a deep-transition RNN, an Elman RNN, an LSTM and a GRU,
each with three layers (depth 3) and one linear layer that reads the last state. The same nets are also timed
as rnnfast, as torch.nn and as a Python loop over time, from the same seeded weights, one epoch of each in
turn, and their outputs are compared.

    python -m examples.classify --demo
    python -m examples.classify --data mine.npz --epochs 50
"""

import re
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import rnnfast
from examples import common

LAYERS = 3
REAL = {"gunpoint": 100, "japanese_vowels": 20}  # and the epochs they are learnt in


class Sequences(Dataset):
    """Sequences x [N, T, C], padded at the end, their lengths [N] and their classes y [N], counted from 0."""

    def __init__(self, x, y, lengths=None):
        self.x = torch.as_tensor(x, dtype=torch.float32).clone()
        self.lengths = torch.full((len(x),), self.x.shape[1]) if lengths is None else torch.as_tensor(lengths)
        self.y = torch.as_tensor(y)
        self.x[torch.arange(self.x.shape[1]) >= self.lengths[:, None]] = (
            0  # whatever the padding was, NaN even
        )

    @classmethod
    def from_npz(cls, path):
        """Reads x [N, T, C], y [N] and, where sequences differ in length, lengths [N]."""
        file = np.load(path)
        return cls(file["x"], numbered(file["y"]), file.get("lengths"))

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.lengths[i], self.y[i]

    def batches(self, size, shuffle=True, seed=0):
        """The same order for every net that is given the same seed."""
        return DataLoader(self, size, shuffle=shuffle, generator=torch.Generator().manual_seed(seed))


def numbered(labels):
    """Labels of any kind [N] as 0, 1, 2, … in sorted order."""
    return np.unique(labels, return_inverse=True)[1]


def read(name, seed):
    """(train, test), every channel scaled by the mean and spread of the training steps."""
    if name in REAL:
        data = [real(name, split) for split in ("train", "test")]
    else:
        whole = Sequences.from_npz(name)
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
        parts = order.tensor_split([3 * len(order) // 4])
        data = [Sequences(whole.x[i], whole.y[i], whole.lengths[i]) for i in parts]
    steps = torch.cat([x[:n] for x, n, _ in data[0]])  # [all steps, C], no padding
    for part in data:
        part.x = (part.x - steps.mean(0)) / steps.std(0).clamp_min(1e-8)
    return data


def classes_of(*data):
    return 1 + max(int(part.y.max()) for part in data)


def real(name, split):
    """A data set that sktime brings along: nothing is downloaded."""
    from sktime.datasets import load_gunpoint, load_japanese_vowels

    if name == "gunpoint":
        x, y = load_gunpoint(split=split, return_type="numpy3d")  # [N, C, T]
        return Sequences(x.transpose(0, 2, 1).copy(), numbered(y))
    table, y = load_japanese_vowels(split=split, return_type="nested_univ")  # a cell holds one channel [T]
    rows = [torch.tensor(np.stack([channel.to_numpy() for channel in row], 1)) for row in table.to_numpy()]
    return Sequences(pad_sequence(rows, batch_first=True), numbered(y), [len(row) for row in rows])


class CellLoop(nn.Module):
    """The Python loop over time: torch's cells, stacked."""

    def __init__(self, cell, inputs, hidden):
        super().__init__()
        self.cells = nn.ModuleList(cell(inputs if k == 0 else hidden, hidden) for k in range(LAYERS))

    def forward(self, x):
        states, top = [None] * LAYERS, []
        for h in x.unbind(1):
            for k, cell in enumerate(self.cells):
                states[k] = cell(h, states[k])
                h = states[k][0] if isinstance(states[k], tuple) else states[k]
            top.append(h)
        return torch.stack(top, 1), states[-1]


class DeepTransitionLoop(nn.Module):
    """The deep-transition RNN as written by hand: a perceptron over [x_t, h], step by step."""

    def __init__(self, inputs, hidden):
        super().__init__()
        layers = [nn.Linear(inputs + hidden, hidden)]
        for _ in range(LAYERS - 1):
            layers += [nn.LeakyReLU(), nn.Linear(hidden, hidden)]
        self.rnn = nn.Sequential(*layers)
        self.hidden = hidden

    def forward(self, x):
        h, every = x.new_zeros(len(x), self.hidden), []
        for x_t in x.unbind(1):
            h = self.rnn(torch.cat([x_t, h], 1))
            every.append(h)
        return torch.stack(every, 1), h


class Classifier(nn.Module):
    """A recurrent net and one linear layer that reads its state after each sequence's own last step."""

    def __init__(self, net, hidden, classes):
        super().__init__()
        self.net, self.head = net, nn.Linear(hidden, classes)

    def forward(self, x, lengths):
        x = x[:, : lengths.max()]
        if isinstance(self.net, nn.RNNBase):
            if lengths.min() < lengths.max():
                x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(common.top_state(self.net(x)[1]))
        every, _ = self.net(x)  # [B, T, H]; padding comes after the last step and cannot change it
        return self.head(every[torch.arange(len(x)), lengths - 1])


WAYS = ("rnnfast", "torch.nn", "Python loop")
MODELS = {"deep-transition RNN": None, "Elman RNN": "RNN", "LSTM": "LSTM", "GRU": "GRU"}


def build(model, way, inputs, hidden, classes):
    """One of MODELS, run as rnnfast, as torch.nn or as the Python loop; None if there is no such thing."""
    kind = MODELS[model]
    if kind and way == "Python loop":
        net = CellLoop(getattr(nn, kind + "Cell"), inputs, hidden)
    elif kind:
        net = getattr({"rnnfast": rnnfast, "torch.nn": nn}[way], kind)(
            inputs, hidden, LAYERS, batch_first=True
        )
    elif way == "torch.nn":
        return None
    elif way == "rnnfast":
        net = rnnfast.DeepTransitionRNN(inputs, hidden, depth=LAYERS)
    else:
        net = DeepTransitionLoop(inputs, hidden)
    return Classifier(net, hidden, classes)


def load(classifier, weights):
    """Fills in the weights of any way; only the cells of a loop have other names for them."""
    if isinstance(classifier.net, CellLoop):
        weights = {re.sub(r"(\w+)_l(\d)", r"cells.\2.\1", name): value for name, value in weights.items()}
    classifier.load_state_dict(weights)


def loss_of(classifier, x, lengths, y):
    return cross_entropy(classifier(x, lengths), y)


@torch.no_grad()
def outputs(classifier, data):
    """Class scores [N, classes] of a whole data set."""
    return torch.cat([classifier(x, n) for x, n, _ in data.batches(64, shuffle=False)])


def time_ways(ways, train, args):
    """Seconds of each timed training epoch, {way: [s, …]}. The ways take turns; the first turn warms up."""
    optimizers = {way: torch.optim.Adam(classifier.parameters(), args.lr) for way, classifier in ways.items()}
    seconds = {way: [] for way in ways}
    for turn in tqdm(range(args.timing_epochs + 1), desc=f"timing {', '.join(ways)}", unit="turn"):
        for way, classifier in ways.items():
            batches = train.batches(args.batch, seed=turn)
            begin = time.perf_counter()
            common.train_epoch(classifier, batches, loss_of, optimizers[way], args.clip)
            seconds[way].append(time.perf_counter() - begin)
    return {way: values[1:] for way, values in seconds.items()}


def study(model, train, test, args):
    """Trains one model with rnnfast, then times and compares the ways to run it."""
    shape = train.x.shape[2], args.hidden, classes_of(train, test)
    torch.manual_seed(args.seed)
    net = build(model, "rnnfast", *shape)
    seeded = {name: value.clone() for name, value in net.state_dict().items()}

    length = train.lengths.mode().values  # sequences of one length, so that step t is the same step for all
    same = train.lengths == length
    x, y = train.x[same, :length][: args.batch], train.y[same][: args.batch]
    norms = [common.gradient_per_step(net.net, x, lambda h: cross_entropy(net.head(h), y))]
    losses = common.fit(net, train.batches(args.batch, seed=args.seed), loss_of, args, f"{model:>19}")
    norms.append(common.gradient_per_step(net.net, x, lambda h: cross_entropy(net.head(h), y)))
    scores = outputs(net, test)

    ways = {way: build(model, way, *shape) for way in WAYS}
    ways = {way: classifier for way, classifier in ways.items() if classifier}
    differences = []
    for weights in (net.state_dict(), seeded):  # the seeded ones last: the timing starts from them
        for classifier in ways.values():
            load(classifier, weights)
        scores_of = {way: outputs(classifier, test) for way, classifier in ways.items()}
        differences += [(scores_of["rnnfast"] - other).abs().max() for other in scores_of.values()]
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "largest_score": scores.abs().max().item(),
        "accuracy": (scores.argmax(1) == test.y).double().mean().item(),
        "losses": losses,
        "gradient_norms": {"before training": norms[0], "after training": norms[1]},
        "largest_difference": torch.stack(differences).max().item(),  # NaN if one is
        "epoch_seconds": time_ways(ways, train, args),
    }


def table(results):
    """One line per data set and model: accuracy, seconds, speed-up, largest difference of outputs."""
    lines = ["data|model|accuracy|rnnfast s|torch.nn s|loop s|vs torch.nn|vs loop|largest diff".split("|")]
    for data, models in results.items():
        for model, result in models.items():
            seconds = {way: median(values) for way, values in result["epoch_seconds"].items()}
            ours, others = seconds["rnnfast"], [seconds.get(way) for way in WAYS[1:]]
            line = [data, model, f"{result['accuracy']:.1%}", f"{ours:.3f}"]
            line += [f"{other:.3f}" if other else "–" for other in others]
            line += [f"{other / ours:.1f}×" if other else "–" for other in others]
            lines.append([*line, f"{result['largest_difference']:.1e}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}" for line in lines]
    for k, width in list(enumerate(widths))[2:]:
        text = [f"{start}  {line[k]:>{width}}" for start, line in zip(text, lines, strict=True)]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def draw(name, models, args):
    """Loss curves, seconds per epoch, gradient norm per time step."""
    title = f"{name}: {LAYERS} layers of {args.hidden} hidden units, threads: {args.threads}"
    figure, (curves, bars, gradients) = common.panels(title, 3)
    for k, (model, result) in enumerate(models.items()):
        curves.semilogy(range(1, args.epochs + 1), result["losses"], f"C{k}", label=model)
        before, after = result["gradient_norms"].values()
        steps = range(1, len(after) + 1)
        gradients.semilogy(steps, before, f"C{k}:")
        gradients.semilogy(steps, after, f"C{k}", label=model)
    for k, way in enumerate(WAYS):
        places = [place for place, result in enumerate(models.values()) if way in result["epoch_seconds"]]
        values = [median(list(models.values())[place]["epoch_seconds"][way]) for place in places]
        drawn = bars.bar(
            [place + 0.28 * (k - 1) for place in places], values, 0.26, color=f"C{k + 4}", label=way
        )
        bars.bar_label(drawn, fmt="%.2f", fontsize=7)
    bars.set_xticks(range(len(models)), [model.replace(" ", "\n", 1) for model in models])
    curves.set_ylim(top=min(10, curves.get_ylim()[1]))
    gradients.set_ylim(bottom=max(1e-20, gradients.get_ylim()[0]))
    common.label(curves, "Training loss (what is above 10 is cut off)", "epoch", "cross entropy [nats]")
    common.label(bars, "Time of one training epoch", "", "median time [s]")
    common.label(gradients, "Gradient at each step (dotted: before training)", "time step t", "‖∂L/∂h_t‖")
    return figure


def main(argv=None):
    parser = common.command_line(__doc__.splitlines()[0], batch=5, lr=2e-4, clip=0.1, hidden=300)
    parser.add_argument(
        "--data", nargs="+", default=["gunpoint"], help=f"of {', '.join(REAL)}, or .npz files"
    )
    parser.add_argument("--demo", action="store_true", help="both real data sets, whatever --data says")
    parser.add_argument(
        "--epochs", type=int, help=f"passes over the training data (unset: {REAL}, your own 50)"
    )
    parser.add_argument(
        "--timing-epochs", type=int, default=3, help="timed epochs each way, after one to warm up"
    )
    args = common.start(parser, argv)

    epochs, results = args.epochs, {}
    for data in REAL if args.demo else args.data:
        train, test = read(data, args.seed)
        name, args.epochs = Path(data).stem, epochs or REAL.get(data, 50)
        print(
            f"{name}: {len(train)} sequences to learn, {len(test)} to test, {train.lengths.min()} to"
            f" {train.lengths.max()} steps, {train.x.shape[2]} channels, {classes_of(train, test)} classes;"
            f" {args.epochs} epochs, batch {args.batch}, learning rate {args.lr:g}, {args.threads} threads"
        )
        results[name] = {model: study(model, train, test, args) for model in MODELS}
        common.save(args, f"classify_{name}", draw(name, results[name], args), {"results": results[name]})
    print(f"\n{table(results)}\n")
    print(
        f"s: seconds of one whole training epoch, the median of {args.timing_epochs}; the ways take turns and"
        "\nstart from the same weights. diff: of all test scores, with seeded and with trained weights."
        "\ntorch.nn has no deep-transition RNN."
    )
    return results


if __name__ == "__main__":
    main()
