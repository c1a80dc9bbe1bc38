"""FAB: from a wrong class's side of the boundary back towards the image, by projections onto linear boundaries.

Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", in the targeted
version of AutoAttack, which starts at the image. Where the gradient attacks climb within a budget, this one looks for
the nearest point beyond a boundary, and asks afterwards whether it lies within the budget.
"""

import torch
from torch import Tensor, nn

from stages.common import attacks
from stages.common.audit.margins import lead_of, towards_each
from stages.common.autoattack.apgd import look
from stages.common.models import frozen

BEYOND = 1.05  # of the way to the plane: a little too far, so as to land beyond the boundary (eta)
BACK = 0.9  # of the way from the image that is kept of a point beyond the boundary (beta)
NEAREST = 0.1  # at most: share of a step that starts at the image instead of the point reached (alpha_max)
TINY = 1e-8  # the least length of a projection, against a division by 0


def fab(model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, classes: int, steps: int) -> Tensor:
    """Targeted FAB in the L-infinity norm: images of the same shape within eps and [0, 1].

    Goes for the `classes` likeliest wrong classes of the clean image (or all there are), one after another, in `steps`
    steps each. An image is given back at the first point within eps that is misclassified, clean if it is from the
    start or none was found. All is in float32: a plane is placed by a lead near 0, which bfloat16 would round. Nothing
    is random. Raises ValueError as `attacks.fgsm` does, and for classes or steps < 1.
    """
    attacks.check(images, labels, eps)
    attacks.at_least_1(steps=steps, classes=classes)

    def attack(x: Tensor, y: Tensor, goals: Tensor) -> Tensor:
        return _approach(model, x, y, goals, eps, steps)

    with frozen(model):
        return towards_each(model, images, labels, classes, attack)


def _approach(model: nn.Module, images: Tensor, labels: Tensor, goals: Tensor, eps: float, steps: int) -> Tensor:
    """Each image at the first point found within eps that is misclassified; clean where there is none."""
    found, lead = images.clone(), lead_of(labels, goals)
    x, alive = images, torch.arange(len(images), device=images.device)
    for _ in range(steps):
        clean, y = images[alive], labels[alive]
        _, leads, slope = look(model, lead, x, alive)
        behind = (slope * (x - clean)).flatten(1).sum(1)  # by how much further the plane is from the image than from x
        step, from_clean = to_plane(x, slope, -leads), to_plane(clean, slope, behind - leads)
        way, way_from_clean = (_largest(each).clamp(min=TINY) for each in (step, from_clean))
        share = (way / (way + way_from_clean)).clamp(max=NEAREST).view(-1, 1, 1, 1)
        x = ((1 - share) * (x + BEYOND * step) + share * (clean + BEYOND * from_clean)).clamp(0, 1)
        broken = ~attacks.withstood(model, x, y).to(x.device)
        won = broken & (_largest(x - clean) <= eps)
        found[alive[won]] = x[won]
        x = torch.where(broken.view(-1, 1, 1, 1), clean + BACK * (x - clean), x)[~won]
        alive = alive[~won]
        if len(alive) == 0:
            break
    return found


def to_plane(points: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    """The step d from each of `points`, in [0, 1], to its plane: <normal, d> = gap with points + d in [0, 1], and the
    largest change of a pixel as small as can be; as near to the plane as the box allows where it does not reach it.

    `points` and `normal` are (n, C, H, W), `gap` (n,). All pixels move alike, towards the plane, until they end at 0 or
    1. So what a step of length l gains, the sum of |normal| min(l, room), is made of straight pieces between the rooms
    in order, and the piece that holds the gap gives l.
    """
    gap, way = gap.abs().unsqueeze(1), normal.sign() * gap.sign().view(-1, 1, 1, 1)
    room = torch.where(way > 0, 1 - points, points).flatten(1)
    ends, order = room.sort(dim=1)
    weight = normal.abs().flatten(1).gather(1, order)
    ended = (weight * ends).cumsum(1) - weight * ends  # gained by the pixels with less room than this one
    moving = weight.flip(1).cumsum(1).flip(1)  # by this one and those with more, for each unit of length
    piece = torch.searchsorted(ended + moving * ends, gap).clamp(max=ends.shape[1] - 1)
    length = (gap - ended.gather(1, piece)) / moving.gather(1, piece).clamp(min=torch.finfo(gap.dtype).tiny)
    return way * torch.minimum(length, room).view(points.shape)


def _largest(steps: Tensor) -> Tensor:
    """The largest change of a pixel of each image: (n,)."""
    return steps.abs().flatten(1).amax(1)
