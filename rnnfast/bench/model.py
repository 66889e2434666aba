"""What recurrent layers take of somebody's model's time, and what rnnfast makes of that."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable
from statistics import median

import torch
from torch import Tensor, nn

from .. import info
from .._enable import enabled
from ..nn import convert, revert
from ..testing import error
from .find import Layer, listen, load, mapped, tensors
from .options import Unusable, first_line
from .progress import Bar
from .rounds import interleave, spread, undisturbed
from .tables import aligned

WHOLE = object()  # the model among the names of its layers


def converted(model: nn.Module) -> tuple[nn.Module | None, str]:
    """A copy, of the same parameters, whose layers are rnnfast's; and what stays as it is, and why."""
    try:
        twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except Exception as error:
        return None, f"not converted, for the model cannot be copied ({first_line(error)})"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        convert(twin)
    return twin, " ".join(text for w in said if (text := str(w.message)).startswith("rnnfast.convert:"))


def outputs(call: Callable) -> list[Tensor]:
    torch.manual_seed(0)  # dropout's masks are the same in every way
    return [y.detach().clone() for y in tensors(call()) if y.is_floating_point()]


def difference(found: list[Tensor], exact: list[Tensor]) -> float | None:
    """The largest, as a share of the largest value of its tensor; None where there are no tensors."""
    pairs = [(a, b) for a, b in zip(found, exact, strict=True) if b.numel()]
    return max((error(a, b) / max(b.abs().max().item(), 1e-30) for a, b in pairs), default=None)


def parameters(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class Contest:
    """Modules timed in turns: as torch runs them, while rnnfast is enabled, and converted."""

    def __init__(self, training: bool):
        self.training = training
        self.calls: dict[tuple[str, str], Callable] = {}  # by the name of a module and the way

    def add(self, name: str, run: Callable, module: nn.Module, twin: nn.Module | None, leaves=()) -> None:
        """run(module), and of its converted twin."""
        mine = self.call(run, module, leaves)
        self.calls |= {(name, "torch.nn"): mine, (name, "enabled"): mine}
        if twin is not None:
            self.calls[name, "converted"] = self.call(run, twin, leaves)

    def call(self, run: Callable, module: nn.Module, leaves: Iterable[Tensor]) -> Callable:
        """Forward; training: also the gradients of parameters and `leaves`, from all outputs."""
        if not self.training:
            return lambda: run(module)
        wanted = [*leaves, *parameters(module)]

        def step() -> None:
            ys = [y for y in tensors(run(module)) if y.requires_grad]  # none of a frozen layer at the start
            if ys and wanted:
                torch.autograd.grad(ys, wanted, [torch.ones_like(y) for y in ys], allow_unused=True)

        return step

    def times(self, asked, bar: Bar) -> dict[str, dict[str, list[float]]]:
        """Seconds of each module and way, one figure a round."""
        slow = set()
        for key, call in self.calls.items():
            start = time.perf_counter()
            call()
            if time.perf_counter() - start > 0.1:
                slow.add(key)
        within = {key: enabled for key in self.calls if key[1] == "enabled"}
        sync = torch.cuda.synchronize if asked.device != "cpu" else lambda: None
        with undisturbed():
            times = interleave(
                self.calls, asked.seconds, 3, slow=slow, within=within, sync=sync, tick=bar.within
            )
        found: dict[str, dict[str, list[float]]] = {}
        for (name, way), values in times.items():
            found.setdefault(name, {})[way] = values
        return found


def run(asked) -> dict:
    """The whole result."""
    model, inputs = load(asked.model)
    try:
        model.train(asked.training).to(asked.device)
        inputs = mapped(lambda x: x.to(asked.device), inputs)
        revert(model)
    except RuntimeError as error:
        raise Unusable(f"the model cannot be moved to {asked.device} ({first_line(error)})") from None
    twin, stays = converted(model)
    with torch.inference_mode(not asked.training):
        return measure(asked, model, twin, stays, inputs)


def measure(asked, model: nn.Module, twin: nn.Module | None, stays: str, inputs: tuple) -> dict:
    """It, of a model and its converted twin."""

    def forward(module: nn.Module):
        return module(*inputs)

    try:
        found = listen(model, lambda: forward(model))
        exact = outputs(lambda: forward(model))
        info.reset_counts()
        with enabled():
            differences = {"enabled": difference(outputs(lambda: forward(model)), exact)}
        counts = info.counts()
        if twin is not None:
            differences["converted"] = difference(outputs(lambda: forward(twin)), exact)
    except Exception as error:
        raise Unusable(f"the model cannot be called with its inputs ({first_line(error)})") from None
    ran = check(asked, model, found, forward)
    contest = Contest(asked.training)
    contest.add(WHOLE, forward, model, twin)
    for one in ran:
        contest.add(one.name, one.run, one.module, twin and twin.get_submodule(one.name), one.leaves)
    with Bar(1) as bar:
        bar.begin("timing, in turns")
        times = contest.times(asked, bar)
    layers = [
        {
            "name": one.name or "the model itself",
            "layer": repr(one.module),
            "calls": len(one.calls),
            "input": one.shape,
            "times": told_times(times[one.name]),
            "explain": explained(twin and twin.get_submodule(one.name), one, asked.training),
        }
        for one in ran
    ]
    whole = times.pop(WHOLE)
    return {
        "model": asked.model,
        "class": type(model).__name__,
        "mode": "training" if asked.training else "inference",
        "device": asked.device,
        "rounds": len(whole["torch.nn"]),
        "whole": told_times(whole),
        "layers": layers,
        "not_called": [one.name for one in found if not one.calls],
        "stays": stays,
        "enabled": told_counts(counts),
        "differences": differences,
        **expected(whole, list(times.values())),
        "failed": ", ".join(f"{way} differs" for way, by in differences.items() if by == float("inf")),
    }


def check(asked, model: nn.Module, found: list[Layer], forward: Callable) -> list[Layer]:
    """The layers that were called."""
    if not found:
        raise Unusable(f"{asked.model}: the model has no recurrent layer, no torch.nn.RNN, LSTM, GRU or cell")
    ran = [one for one in found if one.calls]
    if not ran:
        raise Unusable(f"{asked.model}: the model calls none of its {len(found)} recurrent layers")
    if asked.training and not (parameters(model) and any(y.requires_grad for y in tensors(forward(model)))):
        raise Unusable(f"{asked.model}: no output of the model has a gradient, which --training needs")
    return ran


def explained(layer: nn.Module | None, one: Layer, training: bool) -> str:
    """The sentence of the converted layer for its first call; nothing of one that stays torch.nn's."""
    if not hasattr(layer, "explain"):
        return ""
    args, kwargs = one.calls[0]
    with torch.set_grad_enabled(training):
        return layer.explain(*args, **kwargs)


def told_counts(counts: dict[str, dict[str, int]]) -> str:
    """What became of the calls of torch's operators in one call of the model, while enabled."""
    found: dict[str, int] = {}
    for reasons in counts.values():
        for reason, n in reasons.items():
            found[reason] = found.get(reason, 0) + n
    taken = found.pop("taken", 0)
    return f"{taken} taken" + "".join(f", {n} passed on ({reason})" for reason, n in found.items())


def told_times(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        way: {f"{key}_ms": value * 1e3 for key, value in spread(all_of).items()}
        for way, all_of in times.items()
    }


def expected(whole: dict[str, list[float]], layers: list[dict[str, list[float]]]) -> dict:
    """The layers' share of the time; how many times as fast the model is, by that and as measured.

    Medians over the rounds: what a busy moment does to a round it does to all that was timed in it.
    """
    ways = [way for way in whole if way != "torch.nn"]
    spent = {way: [sum(round) for round in zip(*(one[way] for one in layers), strict=True)] for way in whole}
    share = min(1.0, over(spent["torch.nn"], whole["torch.nn"]))
    kept = {way: over(spent[way], spent["torch.nn"]) for way in ways}
    return {
        "share": share,
        "expected": {way: 1 / (1 - share + share * kept[way]) for way in ways},
        "measured": {way: over(whole["torch.nn"], whole[way]) for way in ways},
    }


def over(times: list[float], others: list[float]) -> float:
    return median(a / b for a, b in zip(times, others, strict=True))


def text(result: dict) -> str:
    """What is printed."""
    ways = list(result["whole"])
    columns = ["", "calls", "input", *(f"{way} ms" for way in ways)]
    columns += [*(f"{way} ×" for way in ways[1:]), "share"]
    total = result["whole"]["torch.nn"]["median_ms"]

    def line(name: str, calls: str, shape: str, times: dict) -> list[str]:
        theirs = times["torch.nn"]["median_ms"]
        each = [f"{t['median_ms']:.3g} ({t['q1_ms']:.3g}–{t['q3_ms']:.3g})" for t in times.values()]
        gains = [f"{theirs / times[way]['median_ms']:.2f}" for way in ways[1:]]
        return [name, calls, shape, *each, *gains, f"{100 * theirs / total:.0f} %"]

    lines = [line(one["name"], str(one["calls"]), one["input"], one["times"]) for one in result["layers"]]
    lines.append(line("the whole model", "", "", result["whole"]))
    title = f"{result['class']} of {result['model']}, {result['mode']}"
    return "\n".join([title, "", aligned((columns, lines), 1), "", *notes(result)])


def notes(result: dict) -> list[str]:
    """What stands below the table."""
    paths: dict[str, list[str]] = {}
    for one in result["layers"]:
        if one["explain"]:
            paths.setdefault(one["explain"].partition(": ")[2], []).append(one["name"])

    def each(numbers: dict[str, float]) -> str:
        return ", ".join(f"{number:.2f} times as fast {way}" for way, number in numbers.items())

    share = result["share"]
    said = [
        f"Medians (quartiles) of {result['rounds']} rounds in turns; layers alone, with what the model gives "
        "them. Share: of the model's time, by torch.nn.",
        f"Recurrent layers take {100 * share:.0f} % of it. By their times alone one may expect a model "
        f"{each(result['expected'])}; measured: {each(result['measured'])}.",
    ]
    if share < 1:
        said.append(f"Layers that took no time at all would make it {1 / (1 - share):.2f} times as fast.")
    differences = ", ".join(
        f"{way} {'–' if by is None else f'{by:.0e}'}" for way, by in result["differences"].items()
    )
    said.append(f"Largest difference of the outputs, as a share of their largest value: {differences}.")
    said.append(f"Calls while enabled: {result['enabled']}.")
    said += [f"{', '.join(names)}: {sentence}" for sentence, names in paths.items()]
    said += [result["stays"]] * bool(result["stays"])
    said += [f"Not called: {', '.join(result['not_called'])}."] * bool(result["not_called"])
    return said + [f"WRONG: {result['failed']}."] * bool(result["failed"])
