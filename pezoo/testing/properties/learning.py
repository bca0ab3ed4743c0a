"""What learns: every parameter, from where it begins, in every row."""

import torch
from torch import Tensor

from pezoo.testing.subject import (
    LENGTH,
    ROUNDING,
    CheckFailed,
    Subject,
    check,
    finite,
    gap,
    has_none,
    logits_and_gradients,
    read,
    tokens,
)


@check(schedules=True)
def every_parameter_learns(s: Subject) -> None:
    """Every gradient is finite. Every parameter has one, leaves the value it begins with, and changes the logits."""
    gradients = _gradients(s, 1, (1, 3))
    still = [name for name, total in gradients.items() if not total.any()]
    if still:
        raise CheckFailed("a gradient for every parameter", f"none for {', '.join(still)}")
    if stuck := _stuck(s, list(gradients)):
        raise CheckFailed("that training moves every parameter from where it begins", f"{', '.join(stuck)} stays there")
    if ignored := _ignored(s, list(gradients)):
        raise CheckFailed("logits that each parameter changes", f"the same, whatever {', '.join(ignored)}")


def _stuck(s: Subject, names: list[str]) -> list[str]:
    """Parameters that a few steps of training leave at their initial values, such as one at the end of a clamp."""
    for phase in dict.fromkeys(("train", *s.phases)):
        for length in (LENGTH, 3 * LENGTH):
            model = s.model(randomise=False)
            if not names or model.scheme.undefined(length, phase) is not None:
                continue
            parameters = dict(model.scheme.named_parameters())
            begun = {name: parameters[name].detach().clone() for name in names}
            for _ in range(3):  # what lies behind a layer of zeros has no gradient in the first
                model.zero_grad()
                logits_and_gradients(model, tokens(length), phase)
                for parameter in parameters.values():
                    parameter.data -= 0 if parameter.grad is None else 0.01 * parameter.grad.sign()
            names = [name for name in names if torch.equal(parameters[name], begun[name])]
    return names


def _ignored(s: Subject, names: list[str]) -> list[str]:
    """Parameters that may move without a change: softmax ignores them, and their gradient is rounding."""
    model, generator = s.model(), torch.Generator().manual_seed(0)
    for phase in dict.fromkeys(("train", *s.phases)):
        for length in (LENGTH, 3 * LENGTH):
            if not names or model.scheme.undefined(length, phase) is not None:
                continue
            ids, found = tokens(length), []
            before = read(model, ids, phase=phase)
            for name in names:
                parameter = model.scheme.get_parameter(name)
                kept = parameter.data
                parameter.data = kept + 0.3 * torch.randn(kept.shape, generator=generator)
                if gap(before, read(model, ids, phase=phase)) > ROUNDING:
                    found.append(name)
                parameter.data = kept
            names = [name for name in names if name not in found]
    return names


@check(unless=has_none)
def every_row_learns(s: Subject) -> None:
    """Every row of every parameter gets a gradient at some length: no part of a table lies idle."""
    for name, total in _gradients(s, 8, (1, 3)).items():
        idle = (total.flatten(1).sum(1) if total.ndim > 1 else total) == 0
        if idle.any() and not idle.all():
            raise CheckFailed(f"a gradient for every row of {name}", f"none for {int(idle.sum())} of {len(idle)}")


def _gradients(s: Subject, scale: int, multiples: tuple[int, ...]) -> dict[str, Tensor]:
    """Absolute gradients of the scheme's parameters, summed over phases and lengths."""
    sums: dict[str, Tensor] = {}
    for phase in dict.fromkeys(("train", *s.phases)):
        for length in (scale * LENGTH * m for m in multiples):
            model = s.model(train_length=scale * LENGTH)
            if model.scheme.undefined(length, phase) is not None:
                continue
            found = logits_and_gradients(model, tokens(length), phase)
            for name, gradient in found.items():
                finite(gradient, f"{name} at {length} tokens")
            for name, parameter in model.scheme.named_parameters():
                gradient = found.get(f"gradient of scheme.{name}", torch.zeros_like(parameter))
                sums[name] = sums.get(name, 0) + gradient.abs()
    return sums
