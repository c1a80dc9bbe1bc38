"""A model under audit: what it is attacked with, and every accuracy that several checks share, measured once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from stages.common import attacks, device, evaluation, images, robustness
from stages.common.audit import guessing, probes
from stages.common.audit.certificate import Certificate
from stages.common.audit.square import square_attack
from stages.common.audit.strongest import Found, by_pgd, strongest_attack
from stages.common.images import Batch, ImageSet
from stages.common.params import Params

TRANSFER_STEPS = 10  # an example for another model need not be the best one for its own
NOTHING = -1  # what an image is taken for that is not to be attacked: no class
SEARCH_STEPS = 10  # of PGD at each budget tried while an image's smallest one is searched


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model and what it is audited with. Accuracies are of `image_set`, in [0, 1].

    Budgets are by the L-infinity norm, `eps_l2` alone by the Euclidean one; `confidence` is the level of intervals.
    `other` is the model whose adversarial examples are tried on this one, if there is one; `defended` tells whether
    this one was trained to withstand attacks, or is not known not to be. `certificate` is what is certain of it, if
    anything is.
    """

    model: nn.Module
    other: nn.Module | None
    defended: bool
    image_set: ImageSet
    target: int
    eps: float
    epsilons: tuple[float, ...]
    pgd_steps: int
    restarts: int
    square_images: int
    square_queries: int
    eps_l2: float
    confidence: float
    seed: int
    certificate: Certificate | None = None

    @classmethod
    def from_params(
        cls,
        params: Params,
        *,
        model: nn.Module,
        other: nn.Module | None,
        defended: bool,
        image_set: ImageSet,
        certificate: Certificate | None = None,
    ) -> "Subject":
        """As params.yaml audits a model. Any class serves as the target: what is asked is whether a step goes there."""
        audit = params.audit
        return cls(
            model=model,
            other=other,
            defended=defended,
            image_set=image_set,
            target=len(image_set.classes) - 1,
            eps=params.eps,
            epsilons=tuple(params.fgsm_sweep.epsilons),
            pgd_steps=audit.pgd_steps,
            restarts=audit.restarts,
            square_images=audit.square_images,
            square_queries=audit.square_queries,
            eps_l2=params.eps_l2,
            confidence=params.confidence,
            seed=params.seed,
            certificate=certificate,
        )

    @cached_property
    def predictions(self) -> Tensor:
        """What the model takes the clean images for: int64 (N,)."""
        return evaluation.predictions(self.model, self.image_set.images)

    @cached_property
    def correct(self) -> Tensor:
        """Which clean images are classified correctly: bool (N,). Only these are worth attacking."""
        return self.predictions == self.image_set.labels

    @cached_property
    def learnt(self) -> bool:
        """Whether the answers to clean images have to do with the images, as far as so many of them can tell."""
        labels = self.image_set.labels
        return not guessing.can_be_told(labels) or guessing.informed(labels, self.predictions)

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """The sweep's budgets and eps, ascending, without 0."""
        return tuple(sorted({eps for eps in (*self.epsilons, self.eps) if eps > 0}))

    @cached_property
    def fgsm_survivors(self) -> Tensor:
        """Which images FGSM leaves correct at each of the budgets: bool (len(budgets), N)."""
        predicted = robustness.fgsm_predictions(self.model, self.image_set, self.budgets)
        return predicted == self.image_set.labels

    @cached_property
    def fgsm(self) -> dict[float, float]:
        """Accuracy under FGSM at each of the budgets."""
        return self._by_budget(self.fgsm_survivors)

    @cached_property
    def fgsm_worst_survivors(self) -> Tensor:
        """Which images FGSM leaves correct at each of the budgets and every smaller one: bool (len(budgets), N)."""
        return attacks.worst_case(self.fgsm_survivors) & self.correct

    @cached_property
    def fgsm_worst(self) -> dict[float, float]:
        """Accuracy under FGSM at each of the budgets and every smaller one, image by image."""
        return self._by_budget(self.fgsm_worst_survivors)

    @cached_property
    def pgd_once(self) -> dict[float, Tensor]:
        """Which images PGD from one start leaves correct at each of the budgets: bool (N,)."""
        return {eps: taken == self.image_set.labels for eps, taken in self._pgd_taken.items()}

    @cached_property
    def _pgd_taken(self) -> dict[float, Tensor]:
        """What images are taken for under PGD from one start at each of the budgets: int64 (N,)."""
        return {eps: self._from_first_start(eps) for eps in self.budgets}

    def _from_first_start(self, eps: float) -> Tensor:
        return by_pgd(self.model, self.image_set, eps, self.predictions, steps=self.pgd_steps, seeds=[self.seed])

    @cached_property
    def pgd(self) -> dict[float, float]:
        """Accuracy under PGD from one start, at each of the budgets and at 0."""
        return {eps: float(alive.double().mean()) for eps, alive in {0.0: self.correct, **self.pgd_once}.items()}

    def pgd_at(self, eps: float, steps: int) -> float:
        """Accuracy under PGD from one start."""
        return float(self.pgd_survivors(eps, steps, self.seed, self.correct).double().mean())

    def pgd_survivors(
        self, eps: float, steps: int, seed: int, among: Tensor, norm: type[attacks.Ball] = attacks.Linf
    ) -> Tensor:
        """Which of the images `among`, bool (N,), PGD leaves correct: bool (N,). The others are not attacked."""
        labels = self.image_set.labels
        taken = labels.where(among, NOTHING)
        return by_pgd(self.model, self.image_set, eps, taken, steps=steps, seeds=[seed], norm=norm) == labels

    @cached_property
    def pgd_restarted(self) -> Tensor:
        """Which images survive PGD at eps from every one of the starts: bool (N,)."""
        return self._attacked.restarted == self.image_set.labels

    @cached_property
    def strongest(self) -> Tensor:
        """Which images survive all that is tried here with gradients at eps: bool (N,)."""
        return self._attacked.strongest == self.image_set.labels

    @cached_property
    def _attacked(self) -> Found:
        return self._attacked_at(self.eps)

    @cached_property
    def pgd_l2(self) -> Tensor:
        """Which images survive PGD within `eps_l2` by the Euclidean norm: bool (N,)."""
        return self.pgd_survivors(self.eps_l2, self.pgd_steps, self.seed, self.correct, attacks.L2)

    def worst_of_norms(self, survivors: Tensor) -> Tensor:
        """Which images survive PGD in L2 as well as what has left `survivors`, bool (N,): bool (N,)."""
        return survivors & self.pgd_l2

    def strongest_at(self, eps: float) -> Tensor:
        """Which images survive PGD's starts and then the attack on every margin at `eps`: bool (N,)."""
        return self.strongest if eps == self.eps else self._attacked_at(eps).strongest == self.image_set.labels

    def _attacked_at(self, eps: float) -> Found:
        if eps == 0:
            return Found(self.predictions, self.predictions)
        first = self._pgd_taken[eps] if eps in self.budgets else self._from_first_start(eps)
        return strongest_attack(
            self.model, self.image_set, eps, first, steps=self.pgd_steps, restarts=self.restarts, seed=self.seed
        )

    @cached_property
    def transfer(self) -> dict[float, float]:
        """Accuracy under PGD examples of the other model, at each of the budgets; as for PGD, wrong images stay so."""
        other = self.other
        assert other is not None  # `asked_if` sees to it

        def attack(x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
            return attacks.pgd(other, x, y, eps, steps=TRANSFER_STEPS, generator=generator)

        return self._accuracies(attack, self.correct.nonzero().squeeze(1))

    @cached_property
    def noise(self) -> dict[float, float]:
        """Accuracy under random signs of the size of each of the budgets."""
        everywhere = torch.arange(len(self.image_set))
        return self._accuracies(
            lambda x, y, eps, generator: attacks.sign_noise(x, eps, generator=generator), everywhere
        )

    @cached_property
    def square_sample(self) -> Tensor:
        """The images that Square attacks, a fair sample of all: int64 (n,)."""
        return images.sample(self.image_set.labels, self.square_images)

    @cached_property
    def square(self) -> Tensor:
        """Which of the images `square_sample` survive Square at eps: bool (n,)."""

        def withstood(batch: Batch) -> Tensor:
            generator = batch.generator(self.seed)
            attacked = square_attack(
                self.model, batch.x, batch.y, self.eps, queries=self.square_queries, generator=generator
            )
            return attacks.withstood(self.model, attacked, batch.y)

        return self._joined(withstood, self.square_sample, torch.bool)

    @cached_property
    def smallest_eps(self) -> dict[str, Tensor]:
        """The smallest budgets found that change each prediction, under FGSM and PGD: float (N,), see `probes`."""

        def smallest(batch: Batch) -> Tensor:
            generator = batch.generator(self.seed)
            by_fgsm = probes.smallest_fgsm_eps(self.model, batch.x, batch.y)
            by_pgd = probes.smallest_pgd_eps(self.model, batch.x, batch.y, steps=SEARCH_STEPS, generator=generator)
            return torch.stack([by_fgsm, by_pgd]).cpu()

        right = self.correct.nonzero().squeeze(1)
        found = torch.zeros(2, len(self.image_set))
        found[:, right] = self._joined(smallest, right, torch.float32, 2)
        return dict(zip(("fgsm", "pgd"), found, strict=True))

    def curves(self) -> Iterator[dict[str, float | str]]:
        """Accuracy against eps under every attack on the same images, the weakest first: the rows of a table."""
        accuracies = {
            "noise": self.noise,
            **({} if self.other is None else {"transfer": self.transfer}),
            "FGSM": self.fgsm,
            "FGSM, worst case": self.fgsm_worst,
            "PGD": self.pgd,
        }
        clean = float(self.correct.double().mean())
        for attack, by_budget in accuracies.items():
            for eps, accuracy in {0.0: clean, **by_budget}.items():
                yield {"eps": eps, "attack": attack, "accuracy": accuracy}

    def shares_changed(self, epsilons: Sequence[float]) -> Iterator[dict[str, float | str]]:
        """The share of images whose prediction some budget up to each of `epsilons` changes: the rows of a table."""
        for attack, smallest in self.smallest_eps.items():
            for eps in epsilons:
                yield {"eps": eps, "attack": attack, "share": float((smallest <= eps).double().mean())}

    def generator(self) -> torch.Generator:
        """A fresh source of randomness on the device: equal seeds, equal audits."""
        return torch.Generator(device.of(self.model)).manual_seed(self.seed)

    def _accuracies(
        self, attack: Callable[[Tensor, Tensor, float, torch.Generator], Tensor], chosen: Tensor
    ) -> dict[float, float]:
        """Accuracy at each of the budgets on what `attack(images, labels, eps, generator)` makes of the images at
        `chosen`, int64 (n,); the others count as wrong.
        """

        def withstood(batch: Batch) -> Tensor:
            generator = batch.generator(self.seed)
            attacked = (attack(batch.x, batch.y, eps, generator) for eps in self.budgets)
            return torch.stack([attacks.withstood(self.model, x, batch.y) for x in attacked])

        survivors = torch.zeros(len(self.budgets), len(self.image_set), dtype=torch.bool)
        survivors[:, chosen] = self._joined(withstood, chosen, torch.bool, len(self.budgets))
        return self._by_budget(survivors)

    def _by_budget(self, survivors: Tensor) -> dict[float, float]:
        return dict(zip(self.budgets, survivors.double().mean(1).tolist(), strict=True))

    def _joined(self, function: Callable[[Batch], Tensor], chosen: Tensor, dtype: torch.dtype, *rows: int) -> Tensor:
        """What `function` makes of the images at `chosen`, int64 (n,): (*rows, n) of `dtype`, see `images.joined`."""
        some, where = self.image_set.take(chosen), device.of(self.model)
        each = images.each_batch(function, some.images, some.labels, device=where, description="audit")
        return images.joined(each, dtype, *rows)

    def batches(self, among: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images and labels on the model's device: all of them, or those `among`, bool (N,)."""
        chosen = self.image_set if among is None else self.image_set.take(among.nonzero().squeeze(1))
        for batch in images.batches(chosen.images, chosen.labels, device=device.of(self.model), description="audit"):
            yield batch.x, batch.y
