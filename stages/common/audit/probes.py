"""What the loss round an image looks like, how far away the nearest adversarial example is, what a model carries.

Images are float32 (N, C, H, W) in [0, 1] and labels int64 (N,), the true classes, both on the model's device.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common import attacks
from stages.common.models import frozen

LARGEST = 0.5  # budgets are searched up to here: at 0.5 any image can be turned grey
HALVINGS = 8  # of the interval in which an image's smallest budget lies: to 0.002


def gradient_alignment(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, generator: torch.Generator
) -> Tensor:
    """cos(grad L(x), grad L(x + u)) with u uniform in [-eps, eps], per image (N,).

    Near 1 the loss is linear within the budget and one step is enough; GradAlign (Andriushchenko and Flammarion 2020)
    shows it falling to 0 as training overfits catastrophically.
    """
    noise = 2 * torch.rand(images.shape, generator=generator, device=images.device) - 1
    near = (images + eps * noise).clamp_(0, 1).contiguous(memory_format=torch.channels_last)
    with frozen(model):
        here, there = (attacks.input_gradient(model, x, labels).flatten(1) for x in (images, near))
    return F.cosine_similarity(here, there, dim=1, eps=1e-30)


def smallest_fgsm_eps(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """A budget in [0, LARGEST] at which FGSM changes each prediction, found by bisection: (N,).

    0 where the clean prediction is wrong, infinity where FGSM fails at LARGEST. One gradient serves every budget. Along
    FGSM's ray a prediction may change back; bisection finds one change, which bounds the smallest from above.
    """
    with frozen(model):
        direction = attacks.input_gradient(model, images, labels).sign_()
        with torch.no_grad():
            return _bisect(
                lambda eps: model((images + eps.view(-1, 1, 1, 1) * direction).clamp_(0, 1)).argmax(1) != labels,
                model(images).argmax(1) != labels,
            )


def smallest_pgd_eps(
    model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, generator: torch.Generator
) -> Tensor:
    """The same under PGD of `steps` steps from a random start, each image at a budget of its own."""

    def broken(eps: Tensor) -> Tensor:
        attacked = attacks.pgd_until_broken(model, images, labels, eps, steps=steps, generator=generator)
        return model(attacked).argmax(1) != labels

    with frozen(model), torch.no_grad():
        return _bisect(broken, model(images).argmax(1) != labels)


def _bisect(broken: Callable[[Tensor], Tensor], wrong: Tensor) -> Tensor:
    """The upper end of the interval that holds each image's budget. `broken(eps (N,))` says which budgets suffice."""
    low, high = torch.zeros(len(wrong), device=wrong.device), torch.full((len(wrong),), LARGEST, device=wrong.device)
    never = ~broken(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = broken(middle)
        low, high = torch.where(found, low, middle), torch.where(found, middle, high)
    high[never] = torch.inf
    high[wrong] = 0.0
    return high


@torch.no_grad()
def loss_surface(
    model: nn.Module, images: Tensor, labels: Tensor, reaches: Sequence[float], *, generator: torch.Generator
) -> Tensor:
    """Mean loss at x + a s + b r: s the signs of FGSM's gradient, r random signs, a and b from `reaches`: (k, k).

    A sound model's loss climbs smoothly with a and hardly with b; a masked one's is bent, or climbs with b alike.
    """
    with frozen(model):
        aimed = attacks.input_gradient(model, images, labels).sign_()
        random = 2 * torch.randint(2, images.shape, generator=generator, device=images.device).to(images.dtype) - 1
        rows = [
            [
                float(F.cross_entropy(model((images + a * aimed + b * random).clamp_(0, 1)), labels).double())
                for b in reaches
            ]
            for a in reaches
        ]
    return torch.tensor(rows, dtype=torch.float64)


def state(model: nn.Module) -> dict[str, object]:
    """Copies of a model's tensors, its gradients, and the flags of its modules and parameters, by name."""
    tensors = (*model.named_parameters(), *model.named_buffers())  # not state_dict: it may leave buffers out
    found: dict[str, object] = {name: value.detach().clone() for name, value in tensors}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        found[f"{name}.requires_grad"] = parameter.requires_grad
        found[f"{name}.grad"] = None if gradient is None else gradient.clone()
    return found | {f"{name}.training": module.training for name, module in model.named_modules()}


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """The names under which two states of one model differ."""

    def equal(a: object, b: object) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b

    return [name for name, value in after.items() if not equal(value, before[name])]
