"""FGSM, its sweep over budgets on one gradient, PGD and sign noise: attacks on pixels in [0, 1].

Conventions of every function here: `images` are float32 (N, C, H, W) in [0, 1]; `labels` are int64 (N,), the true
classes, or with `targeted=True` the classes to be predicted; `eps` is the largest change of a pixel, in [0, 1], or with
`norm=L2` the Euclidean length of an image's change. The model is attacked in eval mode and is given back as it came:
weights, buffers, gradients and mode untouched.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.models import frozen

EIGHT = 8 / 255  # the L-infinity budget of most published CIFAR-10 figures
Uphill = Callable[[Tensor], Tensor]  # images -> a new tensor of their shape, the gradient of what is climbed
Value = Callable[[Tensor, Tensor], Tensor]  # logits (n, K), their images' numbers (n,) -> what is climbed, (n,)
Climbed = Callable[[Tensor], Value]  # labels (N,) -> the value of these images' logits
_in_bfloat16 = ContextVar("search in bfloat16", default=False)


class Ball(ABC):
    """The images within eps of `images` by a norm, and in [0, 1]: where to start, how to step, where to stay.

    `eps` is one budget, or one for each image, (N,). Its subclasses are the norms that an attack may be given.
    """

    def __init__(self, images: Tensor, eps: float | Tensor):
        self.images = images
        self.reach = eps.view(-1, 1, 1, 1) if isinstance(eps, Tensor) else eps

    @staticmethod
    @abstractmethod
    def diameter(images: Tensor) -> float:
        """How far apart two images of this shape may be in [0, 1]: a larger budget allows no more."""

    @staticmethod
    @abstractmethod
    def direction(gradient: Tensor) -> Tensor:
        """The change of each image, of length 1, that gains most by `gradient`, which may be overwritten; 0 where that
        is 0.
        """

    @abstractmethod
    def offset(self, generator: torch.Generator | None) -> Tensor:
        """Changes of a length of at most 1, uniformly random among all."""

    @abstractmethod
    def project(self, moved: Tensor) -> Tensor:
        """The images `moved` back within eps and in [0, 1]."""

    def start(self, generator: torch.Generator | None) -> Tensor:
        """A uniformly random point within eps, cut off at 0 and 1, in channels_last."""
        started = self.project(self.images + self.offset(generator) * self.reach)
        return started.contiguous(memory_format=torch.channels_last)

    def take(self, chosen: Tensor) -> "Ball":
        """The ball of the images at the indices `chosen`."""
        eps = self.reach[chosen].flatten() if isinstance(self.reach, Tensor) else self.reach
        return type(self)(self.images[chosen], eps)

    def step(self, attacked: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """`size` along the way up that gains most by `gradient`, and back into the ball."""
        return self.project(attacked + size * self.direction(gradient))


class Linf(Ball):
    """Within eps in every pixel."""

    def __init__(self, images: Tensor, eps: float | Tensor):
        super().__init__(images, eps)
        self.low, self.high = (images - self.reach).clamp_(0, 1), (images + self.reach).clamp_(0, 1)

    @staticmethod
    def diameter(images: Tensor) -> float:
        return 1.0

    @staticmethod
    def direction(gradient: Tensor) -> Tensor:
        return gradient.sign_()

    def offset(self, generator: torch.Generator | None) -> Tensor:
        noise = torch.rand(self.images.shape, generator=generator, device=self.images.device, dtype=self.images.dtype)
        return 2 * noise - 1

    def project(self, moved: Tensor) -> Tensor:
        return torch.clamp(moved, self.low, self.high)


class L2(Ball):
    """Within eps in the Euclidean length of an image's whole change."""

    @staticmethod
    def diameter(images: Tensor) -> float:
        return math.sqrt(images.shape[1:].numel())

    @staticmethod
    def direction(gradient: Tensor) -> Tensor:
        # by the largest entry first: the square of a confident model's 1e-25 is 0 in float32
        scaled = gradient / _positive(_lengths(gradient, math.inf))
        return scaled / _positive(_lengths(scaled))

    def offset(self, generator: torch.Generator | None) -> Tensor:
        """Normal noise points anywhere alike (Muller 1959); a share r^d of the ball lies within r of its middle."""
        shape, device, dtype = self.images.shape, self.images.device, self.images.dtype
        noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        shares = torch.rand((shape[0], 1, 1, 1), generator=generator, device=device, dtype=dtype)
        return self.direction(noise) * shares ** (1 / shape[1:].numel())

    def project(self, moved: Tensor) -> Tensor:
        """Into the ball, then into [0, 1], which leads no further from an image that is in it."""
        change = moved - self.images
        return (self.images + change * (self.reach / _positive(_lengths(change))).clamp_(max=1)).clamp_(0, 1)


def _lengths(changes: Tensor, order: float = 2) -> Tensor:
    """The norm of each image's change: (N, 1, 1, 1)."""
    return torch.linalg.vector_norm(changes, order, dim=(1, 2, 3), keepdim=True)


def _positive(lengths: Tensor) -> Tensor:
    """What may be divided by: 0 over it is 0."""
    return lengths.clamp(min=torch.finfo(lengths.dtype).tiny)


def check(images: Tensor, labels: Tensor, eps: float, norm: type[Ball] = Linf) -> None:
    """What every attack asks of its arguments. Raises ValueError that says what was given and what is wanted."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be float (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    if len(images) and not (images.amin() >= 0 and images.amax() <= 1):  # NaN is outside too
        low, high = float(images.amin()), float(images.amax())
        raise ValueError(f"pixels must lie in [0, 1], got [{low:.3g}, {high:.3g}]: attack images before normalisation")
    if not 0 <= eps <= norm.diameter(images):
        raise ValueError(f"eps must lie in [0, {norm.diameter(images):.3g}], got {eps}")


def at_least_1(**numbers: int) -> None:
    """Raise a ValueError that names the first of the `numbers` below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


@contextmanager
def searching(*, bfloat16: bool) -> Iterator[None]:
    """Within it, iterated attacks may look for their way in bfloat16, which has float32's exponents: no gradient is
    rounded to 0, and a processor that multiplies in it takes about 0.55 of the time.

    What an attack has found is judged in float32 all the same, and FGSM's one gradient is float32's.
    """
    before = _in_bfloat16.set(bfloat16)
    try:
        yield
    finally:
        _in_bfloat16.reset(before)


def gradient(function: Callable[[Tensor], Tensor], images: Tensor, *, search: bool = False) -> Tensor:
    """Gradient (N, C, H, W) of the summed `function(images)`, (N,): each image's own, whatever the batch.

    In float32 even inside a caller's autocast (in half precision small gradients round to 0, and their signs are lost);
    a `search` follows `searching`.
    """
    with _precision(images, search), torch.enable_grad():
        images = images.detach().requires_grad_(True)
        return torch.autograd.grad(function(images).sum(), images)[0].to(images.dtype)


def _precision(images: Tensor, search: bool) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16, enabled=search and _in_bfloat16.get())


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor, *, search: bool = False) -> Tensor:
    """Gradient (N, C, H, W) of the cross-entropy to the images."""
    return gradient(lambda x: F.cross_entropy(model(x), labels, reduction="none"), images, search=search)


def step(images: Tensor, direction: Tensor, eps: float, targeted: bool) -> Tensor:
    """The mathematics of FGSM: up the loss of the true class, or down that of the target, and back into [0, 1]."""
    return (images + (-eps if targeted else eps) * direction).clamp_(0, 1)


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    targeted: bool = False,
    norm: type[Ball] = Linf,
) -> Tensor:
    """The fast gradient sign method (Goodfellow 2015): clamp(x + eps sign(grad L(x, y)), 0, 1).

    Targeted (Kurakin 2017) it *descends* the loss of the target instead: clamp(x - eps sign(grad L(x, target)), 0, 1).
    With `norm=L2` it is the fast gradient method (Miyato 2017): g / |g|, of each image, in place of the sign of g.
    Returns images of the same shape. Raises ValueError for pixels outside [0, 1], other shapes, eps outside [0, 1], or
    for L2 above sqrt(C H W).
    """
    check(images, labels, eps, norm)
    with frozen(model):
        return step(images, norm.direction(input_gradient(model, images, labels)), eps, targeted)


def fgsm_sweep(
    model: nn.Module, images: Tensor, labels: Tensor, epsilons: Sequence[float], *, targeted: bool = False
) -> Tensor:
    """Predictions int64 (len(epsilons), N) under FGSM at each budget, from one gradient.

    FGSM's direction is the sign of the gradient at the clean image, which no eps enters: k budgets cost one backward
    and k + 1 forward passes, one less with 0 among them, where a loop over `fgsm` costs k and 2 k. The predictions are
    those of that loop.
    """
    for eps in epsilons:
        check(images, labels, eps)
    clean: list[Tensor] = []

    def loss(x: Tensor) -> Tensor:
        logits = model(x)
        clean.append(logits.detach())
        return F.cross_entropy(logits, labels, reduction="none")

    def predictions(eps: float) -> Tensor:
        logits: Tensor = clean[0] if eps == 0 else model(step(images, direction, eps, targeted))
        return logits.argmax(1)

    with frozen(model):
        direction = gradient(loss, images).sign_()
        with torch.no_grad():
            return torch.stack([predictions(eps) for eps in epsilons])


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
    norm: type[Ball] = Linf,
) -> Tensor:
    """Projected gradient descent (Madry 2018) with a uniform random start; images of the same shape.

    Each step moves by `step_size` (2.5 eps / steps if None) along the gradient's sign, or with `norm=L2` along the
    gradient, is projected to the eps ball round `images` and to [0, 1]. The start comes from `generator` (on the
    images' device), or torch's own. Raises ValueError as `fgsm` does, and for steps < 1.
    """
    check(images, labels, eps, norm)
    at_least_1(steps=steps)

    def uphill(attacked: Tensor) -> Tensor:
        slope = input_gradient(model, attacked, labels, search=True)
        return slope.neg_() if targeted else slope

    ball = norm(images, eps)
    sizes = constant(ball, steps) if step_size is None else [step_size] * steps
    with frozen(model):
        return ascend(uphill, ball, sizes, start=ball.start(generator))


def constant(ball: Ball, steps: int) -> list[float | Tensor]:
    """The step sizes of PGD: 2.5 eps / steps, every time (Madry 2018)."""
    return [2.5 * ball.reach / steps] * steps


def ascend(uphill: Uphill, ball: Ball, sizes: Iterable[float | Tensor], *, start: Tensor) -> Tensor:
    """The mathematics of every iterated attack: from `start`, steps of `sizes` along `uphill` within `ball`."""
    attacked = start
    for size in sizes:
        attacked = ball.step(attacked, uphill(attacked), size)
    return attacked


def loss_of(labels: Tensor) -> Value:
    """The cross-entropy of images whose classes are `labels` (N,)."""
    return lambda logits, chosen: F.cross_entropy(logits, labels[chosen], reduction="none")


def margin_of(labels: Tensor) -> Value:
    """How far the likeliest wrong class is above the right one, in logits (Carlini and Wagner 2017): its gradient does
    not fade where the model is confident, as the cross-entropy's does.
    """

    def margin(logits: Tensor, chosen: Tensor) -> Tensor:
        right = labels[chosen].unsqueeze(1)
        return logits.scatter(1, right, -torch.inf).amax(1) - logits.gather(1, right).squeeze(1)

    return margin


def pgd_until_broken(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float | Tensor,
    *,
    steps: int,
    climbed: Climbed = loss_of,
    generator: torch.Generator | None = None,
    norm: type[Ball] = Linf,
) -> Tensor:
    """`pgd`, but that an image is left where it is first misclassified, see `hunt`; `eps` may be one for each image.
    What is `climbed` is the loss (`loss_of`), or the margin (`margin_of`).
    """
    ball = norm(images, eps)
    sizes, start = constant(ball, steps), ball.start(generator)
    with frozen(model):
        return hunt(model, labels, climbed(labels), ball, sizes, start)


def hunt(
    model: nn.Module, labels: Tensor, value: Value, ball: Ball, sizes: Iterable[float | Tensor], start: Tensor
) -> Tensor:
    """`ascend` along `value` of the logits, each image of the batch left where it is first misclassified: images of the
    same shape. What is broken already is not attacked further, so that a weak model costs little.

    Whether an image is broken is decided in float32. `model` is one that `frozen` holds.
    """
    found, alive = start.clone(), torch.arange(len(start), device=start.device)
    for size in sizes:
        x = found[alive].contiguous(memory_format=torch.channels_last).requires_grad_(True)
        with _precision(x, search=True), torch.enable_grad():
            logits = model(x)
            slope = torch.autograd.grad(value(logits, alive).sum(), x)[0].to(x.dtype)
        x = x.detach()
        seeming = (logits.detach().argmax(1) != labels[alive]).nonzero().squeeze(1)
        stay = torch.ones(len(alive), dtype=torch.bool, device=x.device)
        if len(seeming):
            stay[seeming] = withstood(model, x[seeming], labels[alive[seeming]]).to(x.device)
        alive, x, slope = alive[stay], x[stay], slope[stay]
        if len(alive) == 0:
            break
        found[alive] = ball.take(alive).step(x, slope, size[alive] if isinstance(size, Tensor) else size)
    return found


def sign_noise(images: Tensor, eps: float, *, generator: torch.Generator | None = None) -> Tensor:
    """clamp(x + eps s, 0, 1) with a random sign s for each pixel: the whole of FGSM's budget and none of its aim."""
    signs = torch.randint(2, images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return (images + eps * (2 * signs - 1)).clamp_(0, 1)


def withstood(model: nn.Module, attacked: Tensor, labels: Tensor) -> Tensor:
    """Which of the images `attacked` the model classifies as `labels`: bool (N,) on the CPU."""
    return answers(model, attacked) == labels.cpu()


def answers(model: nn.Module, attacked: Tensor) -> Tensor:
    """What the model takes the images `attacked` for, in float32: int64 (N,) on the CPU."""
    with frozen(model), torch.no_grad():
        return model(attacked.contiguous(memory_format=torch.channels_last)).argmax(1).cpu()
