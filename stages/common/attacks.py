"""FGSM, its sweep over budgets on one gradient, PGD and sign noise: L-infinity attacks on pixels in [0, 1].

Conventions of every function here: `images` are float32 (N, C, H, W) in [0, 1]; `labels` are int64 (N,), the true
classes, or with `targeted=True` the classes to be predicted; `eps` is the largest change of a pixel, in [0, 1]. The
model is attacked in eval mode and is given back as it came: weights, buffers, gradients and mode untouched.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.models import frozen

EIGHT = 8 / 255  # the L-infinity budget of most published CIFAR-10 figures
Uphill = Callable[[Tensor], Tensor]  # images -> a new tensor of their shape, the gradient of what is climbed


def check(images: Tensor, labels: Tensor, eps: float) -> None:
    """What every attack asks of its arguments. Raises ValueError that says what was given and what is wanted."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be float (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    if len(images) and not (images.amin() >= 0 and images.amax() <= 1):  # NaN is outside too
        low, high = float(images.amin()), float(images.amax())
        raise ValueError(f"pixels must lie in [0, 1], got [{low:.3g}, {high:.3g}]: attack images before normalisation")
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], got {eps}")


def gradient(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of the summed `function(images)`, (N,): each image's own, whatever the batch.

    In float32 even inside a caller's autocast: in half precision small gradients round to 0, and their signs are lost.
    """
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        images = images.detach().requires_grad_(True)
        return torch.autograd.grad(function(images).sum(), images)[0]


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of the cross-entropy to the images."""
    return gradient(lambda x: F.cross_entropy(model(x), labels, reduction="none"), images)


def step(images: Tensor, direction: Tensor, eps: float, targeted: bool) -> Tensor:
    """The mathematics of FGSM: up the loss of the true class, or down that of the target, and back into [0, 1]."""
    return (images + (-eps if targeted else eps) * direction).clamp_(0, 1)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, targeted: bool = False) -> Tensor:
    """The fast gradient sign method (Goodfellow 2015): clamp(x + eps sign(grad L(x, y)), 0, 1).

    Targeted (Kurakin 2017) it *descends* the loss of the target instead: clamp(x - eps sign(grad L(x, target)), 0, 1).
    Returns images of the same shape. Raises ValueError for pixels outside [0, 1], other shapes, eps outside [0, 1].
    """
    check(images, labels, eps)
    with frozen(model):
        return step(images, input_gradient(model, images, labels).sign_(), eps, targeted)


def fgsm_sweep(
    model: nn.Module, images: Tensor, labels: Tensor, epsilons: Sequence[float], *, targeted: bool = False
) -> Tensor:
    """Predictions int64 (len(epsilons), N) under FGSM at each budget, from one gradient.

    FGSM's direction is the sign of the gradient at the clean image, which no eps enters: k budgets cost one backward
    and k + 1 forward passes, where a loop over `fgsm` costs k and 2 k. The predictions are those of that loop.
    """
    for eps in epsilons:
        check(images, labels, eps)
    with frozen(model):
        direction = input_gradient(model, images, labels).sign_()
        with torch.no_grad():
            return torch.stack([model(step(images, direction, eps, targeted)).argmax(1) for eps in epsilons])


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
    check(images, labels, eps)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")

    def uphill(attacked: Tensor) -> Tensor:
        slope = input_gradient(model, attacked, labels)
        return slope.neg_() if targeted else slope

    ball = Linf(images, eps)
    sizes = constant(ball, steps) if step_size is None else [step_size] * steps
    with frozen(model):
        return ascend(uphill, ball, sizes, generator=generator)


class Linf:
    """The images within eps of `images` in every pixel, and in [0, 1]: where to start, how to step, where to stay.

    `eps` is one budget, or one for each image, (N,).
    """

    def __init__(self, images: Tensor, eps: float | Tensor):
        self.images = images
        self.reach = eps.view(-1, 1, 1, 1) if isinstance(eps, Tensor) else eps
        self.low, self.high = (images - self.reach).clamp_(0, 1), (images + self.reach).clamp_(0, 1)

    def start(self, generator: torch.Generator | None) -> Tensor:
        """A uniformly random point, in channels_last."""
        noise = torch.rand(self.images.shape, generator=generator, device=self.images.device, dtype=self.images.dtype)
        started = torch.clamp(self.images + (2 * noise - 1) * self.reach, self.low, self.high)
        return started.contiguous(memory_format=torch.channels_last)

    def step(self, attacked: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """`size` along the sign of `gradient`, which is the way up that gains most, and back into the ball."""
        return torch.clamp(attacked + size * gradient.sign_(), self.low, self.high)


def constant(ball: Linf, steps: int) -> list[float | Tensor]:
    """The step sizes of PGD: 2.5 eps / steps, every time (Madry 2018)."""
    return [2.5 * ball.reach / steps] * steps


def ascend(
    uphill: Uphill, ball: Linf, sizes: Iterable[float | Tensor], *, generator: torch.Generator | None = None
) -> Tensor:
    """The mathematics of every iterated attack: from a random start, steps of `sizes` along `uphill` within `ball`."""
    attacked = ball.start(generator)
    for size in sizes:
        attacked = ball.step(attacked, uphill(attacked), size)
    return attacked


def sign_noise(images: Tensor, eps: float, *, generator: torch.Generator | None = None) -> Tensor:
    """clamp(x + eps s, 0, 1) with a random sign s for each pixel: the whole of FGSM's budget and none of its aim."""
    signs = torch.randint(2, images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return (images + eps * (2 * signs - 1)).clamp_(0, 1)


def withstood(model: nn.Module, attacked: Tensor, labels: Tensor) -> Tensor:
    """Which of the images `attacked` the model classifies as `labels`: bool (N,) on the CPU."""
    with frozen(model), torch.no_grad():
        return (model(attacked.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).cpu()
