"""PyTorch Geometric: aggregations of a graph's nodes by an LSTM or a GRU."""

import torch
from torch_geometric.nn import GRUAggregation, LSTMAggregation, Set2Set

WHAT = "`Set2Set(64, 3)` as in its QM9 example, `LSTMAggregation` and `GRUAggregation(64, 64)`; 128 graphs"
GRAPHS, NODES, CHANNELS = 128, 18, 64


def build():
    model = torch.nn.ModuleDict(
        {
            "Set2Set": Set2Set(CHANNELS, processing_steps=3),
            "LSTM": LSTMAggregation(CHANNELS, CHANNELS),
            "GRU": GRUAggregation(CHANNELS, CHANNELS),
        }
    )
    nodes = torch.randint(1, NODES, (GRAPHS,))
    index = torch.arange(GRAPHS).repeat_interleave(nodes)  # the graph of each node
    return model, (torch.randn(len(index), CHANNELS), index)


def forward(model, data):
    return {name: each(*data, dim_size=GRAPHS) for name, each in model.items()}


def loss(model, data):
    return sum(y.square().mean() for y in forward(model, data).values())
