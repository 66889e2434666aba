"""Rows that end early and states that begin anew: the arguments lengths, resets and reset_state of a call."""

from typing import NamedTuple

import torch
from torch import Tensor

from .ops import CELLS


class Episodes(NamedTuple):
    """What a call says of the rows of x: L layers, D directions, P outputs, H units."""

    lengths: Tensor | None = None  # int64 [B]
    resets: Tensor | None = None  # bool, of x's first two dimensions
    reset_state: tuple[Tensor, Tensor | None] | None = None  # [L·D, B or 1, P], [L·D, B or 1, H]
    initial: tuple[Tensor, Tensor | None] | None = None  # the state without hx: the same, of one row
    all_states: bool = False

    def of_a_batch(self, batch):
        """The same where x gets its dimension B = 1, the `batch`th."""

        def row(t, dim):
            return t.unsqueeze(dim) if isinstance(t, Tensor) else t

        state = self.reset_state and tuple(
            s if s is None or s.dim() != 2 else row(s, 1) for s in self.reset_state
        )
        return self._replace(lengths=row(self.lengths, 0), resets=row(self.resets, batch), reset_state=state)


NAMES = ("lengths", "resets", "reset_state", "return_all_states")  # as a call gives them


def of_call(caller, mode, given, initial=None):
    """What `caller` was given by name, as a dict; None if that, and a learned initial state, is nothing."""
    check_names(caller, given, NAMES)
    lengths, resets, state, all_states = (given.get(name) for name in NAMES)
    if initial is None and lengths is None and resets is None and state is None and not all_states:
        return None
    state = pair(state, CELLS[mode]["has_cell"])
    return Episodes(lengths, resets, state, initial, bool(all_states))


def check_names(caller, given, known):
    for name in given:
        if name not in known:
            raise TypeError(f"{caller.__name__}.forward() got an unexpected keyword argument {name!r}")


def pair(state, has_cell):
    """reset_state as a caller gives it -> (h, c); c is None for a cell without c."""
    if state is None:
        return None
    if not has_cell:
        if not isinstance(state, Tensor):
            raise TypeError(f"reset_state: expected a tensor, got {type(state).__name__}")
        return state, None
    if isinstance(state, Tensor) or not (isinstance(state, (tuple, list)) and len(state) == 2):
        got = f"{len(state)} of them" if isinstance(state, (tuple, list)) else type(state).__name__
        raise TypeError(f"reset_state: expected a pair of tensors (h, c), got {got}")
    return tuple(state)


def check(e, x, sizes, bidirectional, packed):
    """Errors that name the argument. sizes: x's first two, and which of them is B; None for packed x."""
    given = {"lengths": e.lengths, "resets": e.resets}
    for name, t in given.items():
        if t is not None and not isinstance(t, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
        if t is not None and packed:
            raise RuntimeError(
                f"{name}: expected None for a PackedSequence, which says how long its sequences are, got a "
                f"tensor of shape {list(t.shape)}"
            )
    if e.resets is not None and bidirectional:
        raise RuntimeError(
            "resets: expected None for a layer in both directions, in which a state would be reset at other "
            f"steps each way, got a tensor of shape {list(e.resets.shape)}"
        )
    if e.reset_state is not None and e.resets is None:
        raise RuntimeError("reset_state: expected None without resets")
    if packed:
        return
    shape, batch = sizes
    if e.lengths is not None:
        _check("lengths", e.lengths, torch.int64, [shape[batch]], "one for each row of the batch")
        if e.lengths.device.type != "cpu":
            _check_device("lengths", e.lengths, x.device, "cpu or ")
    if e.resets is not None:
        layout = "(batch, time)" if batch == 0 else "(time, batch)"
        _check("resets", e.resets, torch.bool, list(shape), layout)
        _check_device("resets", e.resets, x.device)


def of_layers(e, anew, layers, directions, turned):
    """[(lengths, resets, reset_h, reset_c, all_states) of each layer]; anew: (h, c) of all, or None.

    turned: all layers but the last run with the first two dimensions of resets the other way round.
    """
    h, c = ([None] * layers if s is None else s.split(directions) for s in anew or (None, None))
    inner = e.resets.transpose(0, 1) if turned and e.resets is not None else e.resets
    at = [inner] * (layers - 1) + [e.resets]
    return [(e.lengths, at[k], h[k], c[k], e.all_states) for k in range(layers)]


def begin_anew(caller, states, given, input):
    """What a cell goes on from: states [B, H] (or [H]; None is zeros) where resets [B] (or []) is False."""
    check_names(caller, given, ("resets", "reset_state"))
    resets, state = given.get("resets"), given.get("reset_state")
    if resets is None and state is not None:
        raise RuntimeError("reset_state: expected None without resets")
    if resets is None:
        return states
    _check("resets", resets, torch.bool, list(input.shape[:-1]), "one for each row of the input")
    _check_device("resets", resets, input.device)
    anew = pair(state, len(states) == 2) or (None, None)
    return [_where(resets.unsqueeze(-1), a, s, input) for a, s in zip(anew, states, strict=False)]


def _where(resets, anew, state, input):
    if anew is None and state is None:
        return None
    for name, t in {"reset_state": anew, "hx": state}.items():
        if t is not None and t.dtype != input.dtype and not torch._C._is_any_autocast_enabled():
            raise RuntimeError(f"{name}: expected {input.dtype}, as the input, got {t.dtype}")
    # a state of one row serves all of them
    return torch.where(resets, 0 if anew is None else anew, 0 if state is None else state)


def check_states(e, n, B, units, x):
    """The same of reset_state: n of them, [n, B or 1, units] of h and of c."""
    if e.reset_state is None:
        return
    has_cell = e.reset_state[1] is not None
    for i, (state, width) in enumerate(zip(e.reset_state, units, strict=True)):
        if state is None:
            continue
        name = f"reset_state[{i}]" if has_cell else "reset_state"
        if state.dim() != 3 or state.size(0) != n or state.size(1) not in (1, B) or state.size(2) != width:
            raise RuntimeError(
                f"{name}: expected shape [{n}, {B}, {width}] or [{n}, 1, {width}], got {list(state.shape)}"
            )
        if state.dtype != x.dtype and not torch._C._is_any_autocast_enabled():
            raise RuntimeError(f"{name}: expected {x.dtype}, as the input, got {state.dtype}")
        _check_device(name, state, x.device)


def _check(name, t, dtype, shape, meaning):
    if t.dtype != dtype or t.dim() != len(shape) or list(t.shape) != shape:
        raise RuntimeError(
            f"{name}: expected {dtype} of shape {shape}, {meaning}, got {t.dtype} of shape {list(t.shape)}"
        )


def _check_device(name, t, device, other=""):
    if t.device != device:
        raise RuntimeError(
            f"{name}: expected a tensor on {other}{device}, as the input, got one on {t.device}"
        )
