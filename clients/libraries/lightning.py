"""Lightning: a language model with the sizes of its LSTM demo, trained by its Trainer; then TorchScript."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WHAT = "a language model with the sizes of its LSTM demo, 4 layers of 512 units; 20 rows of 35 steps; its "
WHAT += "Trainer; outputs are those of `to_torchscript()`"
WORDS, UNITS, ROWS, STEPS = 1_000, 512, 20, 35


class LanguageModel(LightningModule):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, UNITS)
        self.drop = nn.Dropout(0.2)
        self.lstm = nn.LSTM(UNITS, UNITS, 4, dropout=0.2, batch_first=True)
        self.out = nn.Linear(UNITS, WORDS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        y = self.lstm(self.drop(self.embedding(words)))[0]
        # a mask is drawn as memory lies, and rnnfast.LSTM's output is contiguous
        return self.out(self.drop(y.contiguous()))

    def training_step(self, batch, _):
        words, following = batch
        loss = nn.functional.cross_entropy(self(words).flatten(0, 1), following.flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=20.0)


def build():
    return LanguageModel(), torch.randint(WORDS, (3 * ROWS, STEPS + 1))


def forward(model, words):
    return {"scores": model.to_torchscript()(words[:ROWS, :-1])}


def train(model, words):
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(words[:, :-1], words[:, 1:]), batch_size=ROWS))
    return {"loss": trainer.callback_metrics["loss"]}
