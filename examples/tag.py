"""Sequence to sequence of the same length: a class for every step, a loss at every step.

A thermostat with hysteresis watches a noisy temperature: it switches on below --low, off above --high, and in
between it stays as it was. So the tag of a step hangs on how the temperature last left the band, and no rule
that looks at one step alone can be right. A deep-transition RNN with a head on every state learns it.

    python -m examples.tag
"""

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import rnnfast
from examples import common


def thermostat(count, steps, low, high):
    """Temperatures [count, steps, 1], a random walk pulled back to 0; and switches [count, steps], 1: on."""
    value, state = torch.randn(count), torch.zeros(count, dtype=torch.bool)  # off at first
    values, states = [], []
    for _ in range(steps):
        value = 0.8 * value + 0.6 * torch.randn(count)
        state = (state | (value < low)) & ~(value > high)
        values.append(value)
        states.append(state)
    return torch.stack(values, 1)[..., None], torch.stack(states, 1).long()


def loss_of(net, x, y):
    """The losses of all the steps, stacked and averaged: every step sends a gradient back."""
    scores = net(x)  # [B, T, 2]
    losses = [cross_entropy(scores[:, t], y[:, t]) for t in range(x.shape[1])]
    return torch.stack(losses).mean()


def right_below(threshold, x, y):
    """The rule that looks at one step alone, on below the threshold: where it is right [count, steps]."""
    return ((x[..., 0] < threshold) == y.bool()).double()


def main(argv=None):
    parser = common.command_line(__doc__.splitlines()[0], epochs=30, batch=32, lr=3e-3, clip=1.0, hidden=32)
    parser.add_argument("--count", type=int, default=512, help="sequences to learn; as many again to test")
    parser.add_argument("--steps", type=int, default=80, help="steps of a sequence")
    parser.add_argument("--low", type=float, default=-1.0, help="temperature below which it switches on")
    parser.add_argument("--high", type=float, default=1.0, help="temperature above which it switches off")
    args = common.start(parser, argv)

    x, y = thermostat(args.count, args.steps, args.low, args.high)
    x_test, y_test = thermostat(args.count, args.steps, args.low, args.high)
    net = rnnfast.DeepTransitionRNN(1, args.hidden, output_size=2, step_output=True)
    batches = DataLoader(TensorDataset(x, y), args.batch, shuffle=True)
    losses = common.fit(net, batches, loss_of, args, "deep-transition RNN")

    with torch.no_grad():
        chance = net(x_test).softmax(2)[..., 1]  # of being on, [count, steps]
    right = ((chance > 0.5) == y_test.bool()).double()
    threshold = max(torch.linspace(-3, 3, 121), key=lambda value: right_below(value, x, y).mean())
    right_rule = right_below(threshold, x_test, y_test)
    results = {
        "losses": losses,
        "accuracy": right.mean().item(),
        "accuracy_of_the_best_threshold": right_rule.mean().item(),
        "sequences_without_an_error": right.amin(1).mean().item(),
    }

    figure, (signal, curve, steps) = common.panels("A thermostat with hysteresis, tagged step by step", 3)
    t = range(1, args.steps + 1)
    shown = y_test.diff(dim=1).abs().sum(1).argmax()  # the test sequence that switches most
    on = y_test[shown].bool()
    signal.plot(t, x_test[shown, :, 0], "0.5", label="temperature")
    signal.fill_between(
        t, args.low, args.high, where=on, step="mid", alpha=0.25, color="C1", lw=0, label="on"
    )
    signal.plot(t, chance[shown], "C3", label="chance of on, from the net")
    curve.semilogy(range(1, len(losses) + 1), losses, "C3")
    steps.plot(t, 100 * right.mean(0), "C3", label="deep-transition RNN")
    steps.plot(t, 100 * right_rule.mean(0), "C0", label="best threshold")
    common.label(signal, "One test sequence", "time step t", "temperature [spreads], chance [1]")
    common.label(curve, "Training loss, mean of all steps", "epoch", "cross entropy [nats]", legend=False)
    common.label(steps, "Right tags over the test set", "time step t", "accuracy [%]")

    print(f"right tags: {results['accuracy']:.2%}")
    print(f"right tags of the best threshold: {results['accuracy_of_the_best_threshold']:.2%}")
    print(f"test sequences without an error: {results['sequences_without_an_error']:.1%}")
    return common.save(args, "tag", figure, results)


if __name__ == "__main__":
    main()
