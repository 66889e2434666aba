"""NeuralForecast: forecasts of many series by an LSTM or a GRU."""

import torch
from neuralforecast import NeuralForecast
from neuralforecast.models import GRU, LSTM
from neuralforecast.utils import AirPassengersPanel

WHAT = "`LSTM`, `GRU` with their defaults, 2 layers of 128 and 200 units; its own series, 24 months before 12"
BEFORE, AHEAD = 24, 12


def build():
    options = {"h": AHEAD, "input_size": BEFORE, "max_steps": 3, "accelerator": "cpu", "logger": False}
    options |= {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    forecast = NeuralForecast([LSTM(**options), GRU(**options)], freq="ME")
    return torch.nn.ModuleList(forecast.models), forecast


def forward(models, _):
    rows = {"insample_y": torch.linspace(-1, 1, 32 * BEFORE).view(32, BEFORE, 1)}
    rows |= {"futr_exog": None, "hist_exog": None, "stat_exog": None}
    return {type(model).__name__: model(rows) for model in models}


def train(models, forecast):
    forecast.fit(AirPassengersPanel[["unique_id", "ds", "y"]])
    return {type(model).__name__: torch.tensor(model.train_trajectories[-1][1]) for model in models}
