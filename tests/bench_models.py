"""Models for `rnnfast.bench --model`, as a stranger has them in a file of his own."""

import torch
from torch import nn


class Everything(nn.Module):
    """A recurrent layer of each kind, called in each way."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 6)
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
        self.gru, self.rnn = nn.GRU(16, 7), nn.RNN(7, 5, nonlinearity="relu")
        self.cell, self.gru_cell, self.rnn_cell = nn.LSTMCell(5, 6), nn.GRUCell(6, 4), nn.RNNCell(4, 3)
        self.unused, self.head = nn.GRU(3, 3), nn.Linear(3, 2)

    def forward(self, tokens, lengths):
        x = self.lstm(self.embed(tokens))[0].transpose(0, 1)
        x = self.rnn(self.gru(nn.utils.rnn.pack_padded_sequence(x, lengths))[0])[1][-1]
        state = h = s = None
        for _ in range(3):
            state = self.cell(x, state)
            h = self.gru_cell(state[0], h)
            s = self.rnn_cell(h, hx=s)
        return {"logits": self.head(s), "states": [h, s]}


def everything():
    return Everything(), (torch.randint(0, 50, (3, 9)), torch.tensor([9, 7, 4]))


def alone():
    print("a model that talks")
    return nn.GRU(4, 5), torch.randn(6, 2, 4)


class Frozen(nn.Module):
    """Its recurrent layers are not trained; the second hands a gradient on to what is."""

    def __init__(self):
        super().__init__()
        self.first, self.between, self.second = nn.GRU(4, 5), nn.Linear(5, 6), nn.RNN(6, 3)
        for layer in (self.first, self.second):
            layer.requires_grad_(False)

    def forward(self, x):
        return self.second(self.between(self.first(x)[0]))[0]


def frozen():
    return Frozen(), (torch.randn(6, 2, 4),)


class Own(nn.LSTM):
    """With a forward of its own, which stays."""

    def forward(self, x):
        return super().forward(x)[0].relu()


def with_its_own_forward():
    return nn.Sequential(Own(4, 5), nn.Linear(5, 2)), (torch.randn(6, 2, 4),)


def without_a_layer():
    return nn.Linear(4, 5), torch.randn(2, 4)


def that_calls_none():
    return Idle(), (torch.randn(2, 4),)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5)

    def forward(self, x):
        return x


def that_raises():
    raise ValueError("no weights\nhere")


def that_returns_no_pair():
    return nn.LSTM(4, 5)


def of_a_wrong_shape():
    return nn.LSTM(4, 5), (torch.randn(6, 2, 3),)


def of_odd_inputs():
    return nn.LSTM(4, 5), 3


NOT_CALLABLE = 3
