"""TorchRL's LSTMModule and GRUModule over rnnfast's layers: trajectories in one call, whatever begins inside.

`import rnnfast` does not load this module, for TorchRL is needed by nothing else.
"""

import torch
import torchrl.modules
from tensordict.nn import dispatch

from . import nn


def _layer_of(module):
    return module.lstm if isinstance(module, torchrl.modules.LSTMModule) else module.gru


def _can_run(layer):
    return isinstance(layer, nn.LSTM | nn.GRU)  # others know no lengths


class _InOneCall:
    """What both modules do otherwise than TorchRL's, of which they are subclasses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        layer, name = _layer_of(nn.convert(self)), f"rnnfast.torchrl.{type(self).__name__}"
        if not _can_run(layer):
            got = f"{type(layer).__module__}.{type(layer).__qualname__}"
            raise TypeError(f"{name}: the layer should be rnnfast's or torch.nn's, got {got}")
        if layer.learn_initial_state:
            raise ValueError(f"{name}: states come from the tensordict, got a layer with learn_initial_state")

    @dispatch
    def forward(self, tensordict):
        """Reads in_keys and writes out_keys of a tensordict -> the tensordict; see the class."""
        if not self.recurrent_mode or not tensordict.ndim:
            return super().forward(tensordict)
        layer, shape = _layer_of(self), tensordict.shape
        x = tensordict[self.in_keys[0]].flatten(0, len(shape) - 1)  # [N, I], trajectory after trajectory
        starts = tensordict["is_init"].reshape(-1, shape[-1]).clone()
        starts[:, 0] = True
        begins = starts.flatten().nonzero().squeeze(1)  # of episodes and trajectories, rows of x: [E]
        lengths = begins.diff(append=begins.new_tensor([len(x)]))
        steps = torch.arange(lengths.max(), device=x.device)
        here = steps < lengths[:, None]  # [E, S]
        rows = (begins[:, None] + steps).where(here, 0)

        hx = [tensordict.get(key, None) for key in self.in_keys[1 : len(self.out_keys)]]
        if any(h is None for h in hx):
            hx = None
        else:  # [*shape, L, H] -> [L, E, H]
            hx = [h.flatten(0, len(shape) - 1)[begins].transpose(0, 1).contiguous() for h in hx]
            hx = tuple(hx) if len(hx) == 2 else hx[0]
        y, _, states = layer(x[rows], hx, lengths=lengths, return_all_states=True)
        states = states if isinstance(states, tuple) else (states,)  # of every layer and step [L, E, S, H]
        results = [y, *(h.permute(1, 2, 0, 3) for h in states)]
        for key, value in zip(self.out_keys, results, strict=True):
            tensordict.set(key, value[here].unflatten(0, shape))
        return tensordict


class LSTMModule(_InOneCall, torchrl.modules.LSTMModule):
    """`torchrl.modules.LSTMModule` over an `rnnfast.LSTM`.

    For training (recurrent mode) TorchRL's cuts trajectories where episodes begin inside them, pads and packs
    the pieces, each from the state that the tensordict holds there, and puts the outputs together again. This
    one leaves the packing to the layer's `lengths`, and gives the same.

    Examples:
        >>> from rnnfast.torchrl import LSTMModule  # where torchrl.modules stood
        >>> lstm = LSTMModule(input_size=3, hidden_size=64, in_key="observation", out_key="embedding")

    Args: as TorchRL's. A layer that is made of them, or given as `lstm`, becomes rnnfast's by
    `rnnfast.convert`. `recurrent_backend` is not looked at.

    What differs: next states are written for every step; TorchRL's are zeros but where an episode ends.
    There, of a layer in both directions, it has what each direction has ended with, and this the last step's.

    Raises: what TorchRL's raises; a TypeError for python_based=True, whose layer is TorchRL's own; a
    ValueError for a layer that learns its initial state, for that comes from the tensordict.
    """


class GRUModule(_InOneCall, torchrl.modules.GRUModule):
    """`torchrl.modules.GRUModule` over an `rnnfast.GRU`; see `LSTMModule`."""


_OURS = {torchrl.modules.LSTMModule: LSTMModule, torchrl.modules.GRUModule: GRUModule}


def convert(model):
    """`rnnfast.convert`, of TorchRL's LSTMModules and GRUModules within the model as well -> the model.

    Examples:
        >>> policy = rnnfast.torchrl.convert(policy)
    """
    nn.convert(model)
    for module in model.modules():
        ours = _OURS.get(type(module))
        if ours is not None and _can_run(_layer_of(module)):
            module.__class__ = ours
    return model
