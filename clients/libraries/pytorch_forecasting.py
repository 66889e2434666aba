"""PyTorch Forecasting: networks over its own subclasses of nn.LSTM and nn.GRU, which take empty sequences."""

import torch
from lightning.pytorch import Trainer
from pytorch_forecasting import RecurrentNetwork, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data.examples import generate_ar_data

WHAT = "`RecurrentNetwork` (LSTM, GRU) and `TemporalFusionTransformer` with their defaults, 10 and 16 units; "
WHAT += "series that it draws, 60 steps before 20, 64 rows"
NOT_CONVERTED = "its subclasses of `nn.LSTM` and `nn.GRU` have a forward of their own; `convert` says so"
NOISE = [f"k_layers.{head}.bias" for head in range(4)]  # of attention's keys, which softmax does not see


def build():
    data = TimeSeriesDataSet(
        generate_ar_data(seasonality=10.0, timesteps=150, n_series=20, seed=0),
        time_idx="time_idx", target="value", group_ids=["series"], time_varying_unknown_reals=["value"],
        max_encoder_length=60, max_prediction_length=20,
    )  # fmt: skip
    model = torch.nn.ModuleDict(
        {
            "LSTM": RecurrentNetwork.from_dataset(data, cell_type="LSTM"),
            "GRU": RecurrentNetwork.from_dataset(data, cell_type="GRU"),
            "TFT": TemporalFusionTransformer.from_dataset(data),
        }
    )
    return model, data


def forward(model, data):
    x, _ = next(iter(data.to_dataloader(train=False, batch_size=64)))
    return {name: each.eval()(x)["prediction"] for name, each in model.items()}


def train(model, data):
    losses = {}
    for name, each in model.items():
        trainer = Trainer(
            max_epochs=1, limit_train_batches=3, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(each.train(), data.to_dataloader(train=True, batch_size=64))
        losses[name] = trainer.callback_metrics["train_loss_step"]
    return losses
