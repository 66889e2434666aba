"""What autocast asks for, and casting as it does."""

import torch


def dtype_for(x):
    """The dtype autocast asks for on x's device, or None."""
    if not torch._C._is_any_autocast_enabled():
        return None
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def cast(dtype, *tensors):
    """As autocast casts: floating point but not float64."""
    return [
        t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype)
        for t in tensors
    ]


def state_dtype(state, amp):
    """On the CPU torch runs these cells step by step: only products are cast, the state keeps its dtype."""
    return torch.promote_types(state.dtype, amp) if state.device.type == "cpu" else amp
