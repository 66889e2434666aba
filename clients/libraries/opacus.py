"""Opacus: training with differential privacy, which clips the gradient of each sample and adds noise."""

import torch
from opacus import PrivacyEngine
from opacus.layers import DPLSTM
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WHAT = "`DPLSTM(64, 128)` as in its example of names and their languages; 64 names of 15 letters"
NOT_CONVERTED = "`DPLSTM` is no layer of torch.nn's"
NOT_TAKEN = "`DPLSTM` is a loop in Python over linear layers: it calls none of torch's recurrent operators"


class Names(nn.Module):
    """Which of 18 languages a name is of."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(128, 64)
        self.lstm = DPLSTM(64, 128, batch_first=True)
        self.out = nn.Linear(128, 18)

    def forward(self, names):
        return self.out(self.lstm(self.embedding(names))[0][:, -1])


def build():
    return Names(), (torch.randint(128, (64, 15)), torch.randint(18, (64,)))


def forward(model, data):
    return {"scores": model(data[0])}


def train(model, data):
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    batches = DataLoader(TensorDataset(*data), batch_size=32)
    private, optimizer, batches = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=batches,
        noise_multiplier=1.0, max_grad_norm=1.5, poisson_sampling=False,
    )  # fmt: skip
    losses = []
    for names, languages in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(private(names), languages)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    private.to_standard_module()
    return {"losses": torch.stack(losses)}
