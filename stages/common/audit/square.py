"""Square attack: an L-infinity attack that sees logits and no gradient, so no masked gradient can stop it."""

import torch
from torch import Tensor, nn

from stages.common import attacks
from stages.common.models import frozen

START = 0.8  # share of the image that the first squares cover (Andriushchenko 2020, for CIFAR-10 at 8/255)
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries, where that share is halved


def square_attack(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, queries: int, generator: torch.Generator
) -> Tensor:
    """Square attack (Andriushchenko 2020), untargeted, on the margin: images of the same shape within eps and [0, 1].

    Starts at vertical stripes of +-eps; each query sets a square at a random place to +-eps per channel and keeps it
    where the margin of the true class falls. An image is left alone once it is misclassified. The square's side is the
    same for all images of a query, its place and signs are each one's own. `generator` lives on the images' device.
    Arguments as in `attacks.pgd`; raises ValueError as that does, and for queries < 1.
    """
    attacks.check(images, labels, eps)
    attacks.at_least_1(queries=queries)
    count, channels, height, width = images.shape
    low, high = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    with frozen(model), torch.no_grad():
        stripes = _signs((count, channels, 1, width), images, generator)
        best = torch.clamp(images + eps * stripes, low, high)
        margins = _margin(model, best, labels)
        for query in range(1, queries):
            alive = (margins > 0).nonzero().squeeze(1)
            if len(alive) == 0:
                break
            side = _side(query / queries, height, width)
            inside = _squares(len(alive), side, height, width, generator, images.device)
            signs = _signs((len(alive), channels, 1, 1), images, generator)
            tried = torch.where(inside, images[alive] + eps * signs, best[alive])
            tried = torch.clamp(tried, low[alive], high[alive])
            found = _margin(model, tried, labels[alive])
            better = found < margins[alive]
            best[alive[better]], margins[alive[better]] = tried[better], found[better]
    return best


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return 2 * torch.randint(2, shape, generator=generator, device=like.device, dtype=like.dtype) - 1


def _side(done: float, height: int, width: int) -> int:
    """The squares' side when `done` of the queries, 0 to 1, are spent: large ones first."""
    halved = sum(done * 10_000 > limit for limit in HALVINGS)
    side = round((START / 2**halved * height * width) ** 0.5)
    return min(max(side, 1), min(height, width))


def _squares(
    count: int, side: int, height: int, width: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Masks bool (count, 1, height, width), each true inside one random square."""
    top = torch.randint(height - side + 1, (count, 1), generator=generator, device=device)
    left = torch.randint(width - side + 1, (count, 1), generator=generator, device=device)
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    return (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)


def _margin(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The true class's logit minus the largest other one's: above 0 while the image is classified correctly."""
    logits = model(images.contiguous(memory_format=torch.channels_last))
    true = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return true - others.amax(1)
