"""A project folder for tests of prepare."""

import pytest

from stages.common.datasets import cifar
from stages.common.datasets.sources import RAW
from tests.datasets.raw import COUNTS, OOD, choose, write_class


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty project folder to run prepare in, where a CIFAR class has 6 training and 2 test images."""
    import torchvision

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFAR_ROOT", raising=False)
    small = {name: official._replace(images_per_class=COUNTS) for name, official in cifar.OFFICIAL.items()}
    monkeypatch.setattr(cifar, "OFFICIAL", small)
    monkeypatch.setattr(
        torchvision.datasets.utils, "download_url", lambda *_: pytest.fail("no test may reach for the network")
    )
    RAW.mkdir(parents=True)
    choose("cifar10", ood_classes=OOD)
    return tmp_path


@pytest.fixture
def own(place):
    """A user's own images: classes cat and dog to learn, cup and pen as OOD."""
    for name, shade in {"own/cat": 10, "own/dog": 100, "own_ood/cup": 180, "own_ood/pen": 250}.items():
        write_class(name, shade)
    choose("folder", root="own", ood_root="own_ood", image_size=16, test_fraction=0.3)
    return place
