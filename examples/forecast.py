"""Sequence to number: next month's airline passengers from the year before, against naive forecasts.

The Airline series (144 months from 1949, sktime brings it along) is split by time: the net learns on all but
the last --months, and is tested on these, one month ahead. A window of logarithms goes in as changes from its
last month, so that a trend beyond the training years is no new input; the change to the next month comes out.

    python -m examples.forecast
"""

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import rnnfast
from examples import common

YEAR = 12


class Forecaster(nn.Module):
    """LSTM over a window x [B, T, 1]; a linear layer makes its last state the change to the next step [B]."""

    def __init__(self, hidden):
        super().__init__()
        self.lstm = rnnfast.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.head(common.top_state(self.lstm(x)[1])).squeeze(1)


def windows(series, length):
    """Every window as changes from its last value [N, length, 1], and the change to the next value [N]."""
    pieces = series.unfold(0, length + 1, 1)  # [N, length + 1]
    changes = pieces - pieces[:, -2:-1]
    return changes[:, :-1, None], changes[:, -1]


def errors(forecast, truth):
    """Root mean square error [thousand passengers] and mean absolute error [% of the truth]."""
    difference = forecast - truth
    return {
        "rmse": difference.square().mean().sqrt().item(),
        "mape": 100 * (difference / truth).abs().mean().item(),
    }


def main(argv=None):
    parser = common.command_line(__doc__.splitlines()[0], epochs=100, batch=16, lr=1e-2, clip=1.0, hidden=16)
    parser.add_argument("--window", type=int, default=YEAR, help="months that the net sees")
    parser.add_argument("--months", type=int, default=36, help="months at the end to test on")
    args = common.start(parser, argv)
    from sktime.datasets import load_airline

    table = load_airline()
    passengers = torch.tensor(table.to_numpy(), dtype=torch.float32)  # thousands a month
    logs, split = passengers.log(), len(passengers) - args.months
    x, y = windows(logs[:split], args.window)
    scale = y.std()  # of the training months only
    net = Forecaster(args.hidden)
    losses = common.fit(
        net,
        DataLoader(TensorDataset(x / scale, y / scale), args.batch, shuffle=True),
        lambda net, x, y: mse_loss(net(x), y),
        args,
        "LSTM",
    )

    truth, last = passengers[split:], logs[split - 1 : -1]
    with torch.no_grad():
        change = net(windows(logs[split - args.window :], args.window)[0] / scale) * scale
    year_ago = slice(split - YEAR, len(passengers) - YEAR)
    forecasts = {
        "LSTM": (last + change).exp(),
        "last month": last.exp(),
        "same month last year": passengers[year_ago],
        "same change as last year": (last + logs[year_ago] - logs[split - YEAR - 1 : -YEAR - 1]).exp(),
    }
    results = {"losses": losses, "errors": {name: errors(f, truth) for name, f in forecasts.items()}}

    figure, (series, curve) = common.panels("Airline passengers, one month ahead", 2)
    months = [1949 + month / YEAR for month in range(len(passengers))]
    series.plot(months, passengers, "0.3", label="passengers")
    for name, color in (("LSTM", "C3"), ("same month last year", "C0")):
        series.plot(
            months[split:],
            forecasts[name],
            color,
            lw=1.2,
            label=f"{name}: {results['errors'][name]['mape']:.1f} %",
        )
    series.axvline(months[split], color="0.6", ls="--", lw=1)
    curve.semilogy(range(1, len(losses) + 1), losses, "C3")
    common.label(
        series, "Learnt left of the dashed line, tested right of it", "year", "passengers [thousands a month]"
    )
    common.label(curve, "Training loss", "epoch", "mean square error [training spreads²]", legend=False)

    print(f"{'one month ahead':<26}{'RMSE [thousands]':>18}{'mean error [%]':>18}")
    for name, error in results["errors"].items():
        print(f"{name:<26}{error['rmse']:>18.1f}{error['mape']:>18.1f}")
    return common.save(args, "forecast", figure, results)


if __name__ == "__main__":
    main()
