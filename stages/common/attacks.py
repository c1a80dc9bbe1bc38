"""FGSM, its sweep over budgets on one gradient, PGD and sign noise: L-infinity attacks on pixels in [0, 1].

Conventions of every function here: `images` are float32 (N, C, H, W) in [0, 1]; `labels` are int64 (N,), the true
classes, or with `targeted=True` the classes to be predicted; `eps` is the largest change of a pixel, in [0, 1]. The
model is attacked in eval mode and is given back as it came: weights, buffers, gradients and mode untouched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold `model` in eval mode with gradients for the input alone; put every flag back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def _check(images: Tensor, labels: Tensor, eps: float) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be float (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    if len(images) and (images.amin() < 0 or images.amax() > 1):
        low, high = float(images.amin()), float(images.amax())
        raise ValueError(f"pixels must lie in [0, 1], got [{low:.3g}, {high:.3g}]: attack images before normalisation")
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], got {eps}")


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of the summed cross-entropy to the images: each image's own, whatever the batch.

    In float32 even inside a caller's autocast: in half precision small gradients round to 0, and their signs are lost.
    """
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        images = images.detach().requires_grad_(True)
        loss = F.cross_entropy(model(images), labels, reduction="sum")
        return torch.autograd.grad(loss, images)[0]


def _step(images: Tensor, direction: Tensor, eps: float, targeted: bool) -> Tensor:
    """The mathematics of FGSM: up the loss of the true class, or down that of the target, and back into [0, 1]."""
    return (images + (-eps if targeted else eps) * direction).clamp_(0, 1)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, targeted: bool = False) -> Tensor:
    """The fast gradient sign method (Goodfellow 2015): clamp(x + eps sign(grad L(x, y)), 0, 1).

    Targeted (Kurakin 2017) it *descends* the loss of the target instead: clamp(x - eps sign(grad L(x, target)), 0, 1).
    Returns images of the same shape. Raises ValueError for pixels outside [0, 1], other shapes, eps outside [0, 1].
    """
    _check(images, labels, eps)
    with frozen(model):
        return _step(images, input_gradient(model, images, labels).sign_(), eps, targeted)


def fgsm_sweep(
    model: nn.Module, images: Tensor, labels: Tensor, epsilons: Sequence[float], *, targeted: bool = False
) -> Tensor:
    """Predictions int64 (len(epsilons), N) under FGSM at each budget, from one gradient.

    FGSM's direction is the sign of the gradient at the clean image, which no eps enters: k budgets cost one backward
    and k + 1 forward passes, where a loop over `fgsm` costs k and 2 k. The predictions are those of that loop.
    """
    for eps in epsilons:
        _check(images, labels, eps)
    with frozen(model):
        direction = input_gradient(model, images, labels).sign_()
        with torch.no_grad():
            return torch.stack([model(_step(images, direction, eps, targeted)).argmax(1) for eps in epsilons])


def worst_case(correct: Tensor) -> Tensor:
    """Which images survive every budget up to each one: bool (k, N), budgets ascending -> bool (k, N).

    An adversarial example within a small budget lies within every larger one too, so this is the stronger figure, and
    the monotone one; a raw FGSM curve that rises with eps betrays a masked gradient.
    """
    return correct.cummin(0).values if correct.dtype != torch.bool else correct.int().cummin(0).values.bool()


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int,
    step_size: float | None = None,
    targeted: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent (Madry 2018) with a uniform random start; images of the same shape.

    Each step moves by `step_size` (2.5 eps / steps if None) along the gradient's sign, is projected to the eps ball
    round `images` and to [0, 1]. The start comes from `generator` (on the images' device), or torch's own.
    Raises ValueError as `fgsm` does, and for steps < 1.
    """
    _check(images, labels, eps)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")

    def uphill(attacked: Tensor) -> Tensor:
        gradient = input_gradient(model, attacked, labels)
        return gradient.neg_() if targeted else gradient

    with frozen(model):
        return ascend(uphill, images, eps, steps=steps, step_size=step_size, generator=generator)


def ascend(
    gradient: Callable[[Tensor], Tensor],
    images: Tensor,
    eps: float | Tensor,
    *,
    steps: int,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The mathematics of PGD, up whatever `gradient` (images -> a new tensor of their shape) is the gradient of.

    `eps` is one budget, or one for each image, (N,). Start, steps and projection are those of `pgd`.
    """
    reach = eps.view(-1, 1, 1, 1) if isinstance(eps, Tensor) else eps
    step = 2.5 * reach / steps if step_size is None else step_size
    low, high = (images - reach).clamp_(0, 1), (images + reach).clamp_(0, 1)
    start = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    attacked = torch.clamp(images + (2 * start - 1) * reach, low, high).contiguous(memory_format=torch.channels_last)
    for _ in range(steps):
        attacked = torch.clamp(attacked + step * gradient(attacked).sign_(), low, high)
    return attacked


def sign_noise(images: Tensor, eps: float, *, generator: torch.Generator | None = None) -> Tensor:
    """clamp(x + eps s, 0, 1) with a random sign s for each pixel: the whole of FGSM's budget and none of its aim."""
    signs = torch.randint(2, images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return (images + eps * (2 * signs - 1)).clamp_(0, 1)


def training_example(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    attack: str,
    noise: float,
    generator: torch.Generator,
) -> Tensor:
    """One-step adversarial examples for training, at the price of a single extra pass.

    attack: `fgsm` (Goodfellow 2015), from the image itself; `rs-fgsm` (Wong 2020), from x + U(-eps, eps), a step of
    1.25 eps, projected to the ball; `n-fgsm` (de Jorge 2022), from x + U(-noise eps, noise eps), a step of eps, not
    projected: the noise is kept, which is what prevents catastrophic overfitting. All are clamped to [0, 1].
    """
    with frozen(model):
        if attack == "fgsm":
            return _step(images, input_gradient(model, images, labels).sign_(), eps, False)
        reach = noise * eps if attack == "n-fgsm" else eps
        start = torch.rand(images.shape, generator=generator, dtype=images.dtype).to(images.device)
        noisy = (images + (2 * start - 1) * reach).contiguous(memory_format=torch.channels_last)
        if attack == "n-fgsm":
            return _step(noisy, input_gradient(model, noisy, labels).sign_(), eps, False)
        noisy = noisy.clamp_(0, 1)
        attacked = _step(noisy, input_gradient(model, noisy, labels).sign_(), 1.25 * eps, False)
        return torch.clamp(attacked, images - eps, images + eps)
