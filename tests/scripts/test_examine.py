"""One model judged on one folder of images, from the command line to the page."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from scripts.examine import __main__ as examine
from scripts.examine import arguments, measure, plan
from stages.common import attacks, models, pace, params
from stages.common.audit import probes, subject
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.models import origins
from stages.common.normalization import NORMALIZATIONS
from tests.repository import ROOT
from tests.small import RECIPE, fit

QUICK = {
    "audit": {"pgd_steps": 2, "restarts": 2, "square_images": 4, "square_queries": 3},
    "ood_attack": {"images": 8, "pgd_steps": 1},
    "ood_eval": {"neighbours": 3, "guides": 3},
}
COLOURS = {"blue": (40, 60, 210), "green": (50, 200, 70), "red": (220, 50, 40)}


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """Weak attacks from a params.yaml of its own: a second an examination."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in QUICK.items():
        content[section] |= values
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(examine, "PARAMS", tmp_path / "params.yaml")
    monkeypatch.setattr(subject, "SEARCH_STEPS", 1)
    monkeypatch.setattr(probes, "HALVINGS", 1)
    monkeypatch.setattr(measure, "SHARES", (0.5, 1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(folder: Path, pixels: torch.Tensor, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy().squeeze()).save(folder / f"{name}.png")


@pytest.fixture
def coloured(tmp_path):
    """Noisy images of three colours, 32x32: 8 of each below photos/<colour>/, one of each below few/<colour>/."""
    generator = torch.Generator().manual_seed(0)
    for name, colour in COLOURS.items():
        for i in range(8):
            noise = torch.randint(-40, 40, (3, 32, 32), generator=generator)
            pixels = (torch.tensor(colour).view(3, 1, 1) + noise).clamp(0, 255).to(torch.uint8)
            save(tmp_path / "photos" / name, pixels, str(i))
            if i == 0:
                save(tmp_path / "few" / name, pixels, str(i))
    return tmp_path / "photos"


def run(*given: str) -> tuple[str, dict]:
    """The figures of an examination, and what it printed first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["examine", *map(str, given)])
        examine.main()
    return json.loads(Path("build/examine/metrics.json").read_text())


def read(folder: Path, classes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a folder by torchvision's own reading of one."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    found = ImageFolder(str(folder))
    pixels = torch.stack([pil_to_tensor(image) for image, _ in found]).float() / 255
    return pixels, torch.tensor([classes.index(found.classes[label]) for _, label in found])


ARCHITECTURES = [
    "torchvision:resnet18",
    "torchvision:vgg11_bn",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x0_5",
    "timm:resnet10t",
]


@pytest.mark.parametrize("origin", ARCHITECTURES)
def test_figures_of_real_architectures_are_those_of_the_attacks_by_hand(coloured, origin):
    torch.manual_seed(1)
    module = origins.find(origin, classes=3, channels=3, pretrained=False).module
    torch.save(module.state_dict(), "w.pt")
    found = run(origin, "--weights", "w.pt", "--images", "few", "--size", 32, "--normalize", "0.5/0.5")
    x, y = read(Path("few"), sorted(COLOURS))
    by_hand = nn.Sequential(Normalized(), module).eval()
    with torch.no_grad():
        assert found["clean"] == pytest.approx(float((by_hand(x).argmax(1) == y).double().mean()), abs=1e-4)
    budgets = found["sweep"]["eps"]
    right = attacks.fgsm_sweep(by_hand, x, y, budgets) == y
    assert found["sweep"]["fgsm"] == pytest.approx(right.double().mean(1).tolist(), abs=1e-4)
    assert found["fgsm"] == found["sweep"]["fgsm"][budgets.index(found["eps"])]
    assert found["fgsm_worst"] == pytest.approx(
        float(attacks.worst_case(right)[budgets.index(found["eps"])].double().mean()), abs=1e-4
    )
    assert found["strongest"] <= found["pgd"] <= found["clean"] and found["images"] == 3


class Normalized(nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.5


def test_a_transformer_is_examined_at_the_size_it_states(coloured):
    torch.manual_seed(1)
    torch.save(origins.find("timm:test_vit", classes=3, channels=3, pretrained=False).module.state_dict(), "w.pt")
    found = run("timm:test_vit", "--weights", "w.pt", "--images", "few")
    assert found["images"] == 3 and 0 <= found["pgd"] <= found["clean"]
    assert "3 images of 3 classes, 160x160 pixels" in Path("build/examine/report.html").read_text()


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A net of ours that knows the digits a little."""
    return fit(digits, tmp_path_factory.mktemp("work"), RECIPE)[0].eval()


@pytest.fixture
def digit_folders(tmp_path, digits):
    """Digits below digits/<class>/, 5 of each, and upside down ones below turned/."""
    for label in range(10):
        for i in (digits.labels[1600:] == label).nonzero().squeeze(1)[:5].tolist():
            save(tmp_path / "digits" / digits.classes[label], digits.images[1600 + i], str(i))
            save(tmp_path / "turned", digits.images[1600 + i].flip(1), f"{label}-{i}")
    return tmp_path / "digits"


def test_one_model_three_ways_has_the_same_figures(trained, digit_folders):
    torch.save(models.checkpoint(trained), "ours.pt")
    torch.jit.trace(trained, torch.zeros(2, 1, 8, 8)).save("ours.ts")
    Path("ours_net.py").write_text(
        "from stages.common import models\n\n\ndef build():\n    return models.load_checkpoint('ours.pt')\n"
    )
    found = [
        run(model, "--images", digit_folders, "--ood", "turned", "--limit", 40)
        for model in ("ours.pt", "py:ours_net.py:build", "ts:ours.ts")
    ]
    for one in found:
        one.pop("model")
        for name in [name for name in one["ood"] if name.startswith("deep")]:
            del one["ood"][name]  # TorchScript has no stages to look at
        one["ood"]["attacked"].pop("deep_knn_entropy", None)
    assert found[0] == found[1] == found[2]
    assert found[0]["clean"] > 0.5 and found[0]["ood"]["max_logit"]["auroc"] > 0.5
    assert found[0]["ood"]["sizes"] == {"id": 20, "ood": 40, "fitted": 20}


def test_the_page_carries_everything_in_itself(trained, digit_folders):
    torch.save(models.checkpoint(trained), "ours.pt")
    found = run("ours.pt", "--images", digit_folders, "--ood", "turned", "--limit", 30)
    page = Path("build/examine/report.html").read_text()
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=(?![\"']?data:)", page)
    assert page.count('src="data:image/png;base64,') == 3
    assert f"<td>{found['pgd']:.3f}</td>" in page and page.count('class="fail"') == found["audit"]["failed"]
    assert sorted(p.name for p in Path("build/examine").iterdir()) == ["metrics.json", "report.html"]


def test_a_wrong_normalisation_or_order_is_said_first_and_what_would_fit(coloured, capsys):
    Path("colours.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n"
        "    head = nn.Linear(3, 3)\n"
        "    head.weight.data = torch.tensor([[0., 0, 1], [0, 1, 0], [1, 0, 0]])\n"
        "    head.bias.data = torch.tensor([0.0, 0.0, 0.0])\n"
        "    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "    return nn.Sequential(pool, nn.Softsign(), head)\n"
        "\n\ndef turned():\n"
        "    net = build()\n    net[2].weight.data = net[2].weight.data.roll(1, 0)\n    return net\n"
    )
    right = run("py:colours.py:build", "--images", coloured)
    out = capsys.readouterr().out
    assert (
        right["clean"] == 1
        and out.startswith("clean accuracy 1.000 [0.862, 1.000] of 24 images")
        and "near chance" not in out
    )
    run("py:colours.py:turned", "--images", coloured)
    out = capsys.readouterr().out
    assert "near chance (0.333)" in out and "another order of the classes would give 1.00" in out
    assert "by its answers the outputs are red, blue, green" in out
    Path("names.txt").write_text("red\nblue\ngreen\n")
    assert run("py:colours.py:turned", "--images", coloured, "--classes", "names.txt")["clean"] == 1


def test_a_normalisation_that_would_fit_is_named(coloured, capsys):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    net[2].weight.data = torch.eye(3).flip(0)  # of pixels in [0, 255]...
    net[2].bias.data = torch.tensor([100.0, 0.0, 0.0])  # ...where so much is no handicap
    torch.jit.script(net).save("net.ts")
    run("ts:net.ts", "--images", coloured)
    assert "the normalisation 0/0.00392157 would give 1.00 instead of 0.33" in capsys.readouterr().out
    assert run("ts:net.ts", "--images", coloured, "--normalize", "0/0.00392157")["clean"] == 1


def test_the_budget_takes_images_away_and_never_attacks(coloured, monkeypatch, capsys):
    torch.save(
        origins.find("torchvision:resnet18", classes=3, channels=3, pretrained=False).module.state_dict(), "w.pt"
    )
    asked = ["torchvision:resnet18", "--weights", "w.pt", "--images", coloured, "--size", "32"]
    monkeypatch.setattr(pace, "timed", lambda model, image_set: pace.Speed(gradient=0.02, plain=0.01))
    knobs = params.load(examine.PARAMS, overrides={"eps": attacks.EIGHT})
    seconds = plan.rehearse(knobs, ["a", "b", "c"], False).seconds(15, pace.Speed(0.02, 0.01))
    assert run(*asked, "--budget", f"{seconds + 0.01:.3f}s")["images"] == 15
    assert re.search(r"15 of 24 images of 32x32 pixels, eps 0\.03137: up to \d+ s", capsys.readouterr().out)
    with pytest.raises(UserError, match=r"--budget 0 s is too short: 10 images take up to .*not made weaker"):
        run(*asked, "--budget", "0.1s")


@pytest.mark.parametrize("ood", [False, True])
def test_a_rehearsal_costs_what_the_examination_may(trained, digits, ood):
    knobs = params.load(examine.PARAMS)
    some = ImageSet(digits.images[1600:1660], digits.labels[1600:1660], digits.classes)
    cost = plan.rehearse(knobs, digits.classes, ood)
    with pace.Passes(trained).counted() as found:
        asked = measure.subject(knobs, trained, some, 9)
        examine.verdicts.figures_of(asked, list(examine.verdicts.judge(asked)))
        measure.accuracies(asked)
        measure.targeted(asked)
        if ood:
            known, inside = measure.halves(some)
            measure.detect(knobs, trained, known, inside, some)
    gradients, passes = cost.passes_of(len(some))
    assert gradients / 3 <= found.gradient <= gradients * 1.05 and passes / 3 <= found.plain <= passes * 1.05


def test_strict_fails_where_a_check_failed_and_writes_the_figures_all_the_same(coloured):
    Path("masks.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.scale = nn.Parameter(torch.tensor(1e4))\n\n"
        "    def forward(self, x):\n        return self.scale * x.mean((2, 3)).flip(1)\n\n\n"
        "def build():\n    return Net()\n"
    )
    with pytest.raises(UserError, match=r"\d+ checks? of the audit failed \(--strict\)"):
        run("py:masks.py:build", "--images", coloured, "--strict")
    found = json.loads(Path("build/examine/metrics.json").read_text())
    assert found["audit"]["failed"] > 0 and found["audit"]["gradients_not_zero"] == 0
    assert run("py:masks.py:build", "--images", coloured)["audit"]["failed"] > 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["absent.pt", "--images", "photos"], ["absent.pt is missing"]),
        (["w.pt", "--images", "photos"], ["w.pt is no checkpoint of this project", "--weights w.pt"]),
        (["py:nets.py:build", "--images", "splits"], ["test, train, which are no classes", "--images splits/test"]),
        (["resnet18", "--images", "photos"], ["'resnet18' is no file, and names no model"]),
        (["torchvision:resnet18", "--images", "absent"], ["absent is not a folder"]),
        (["torchvision:resnet18", "--images", "photos"], ["1000 classes, not 3", "--classes"]),
        (["py:nets.py:build", "--images", "photos", "--classes", "two.txt"], ["green", "rename", "--classes"]),
        (["py:nets.py:build", "--images", "photos", "--classes", "twice.txt"], ["names 'red' twice"]),
        (["py:nets.py:build", "--images", "photos", "--classes", "absent.txt"], ["absent.txt cannot be read"]),
        (["py:nets.py:build", "--images", "photos", "--target", "pink"], ["'pink'", "blue, green, red"]),
        (["py:nets.py:build", "--images", "photos", "--size", "32", "--crop", "64"], ["no larger than --size"]),
        (["py:nets.py:build", "--images", "mixed"], ["32x32, 48x32", "--size N"]),
        (["py:nets.py:build", "--images", "empty"], ["holds no images"]),
        (["py:nets.py:build", "--images", "one"], ["one class (blue)"]),
        (["py:nets.py:build", "--images", "damaged"], ["bad.png", "damaged"]),
        (["py:nets.py:grey", "--images", "photos"], ["takes grey images"]),
        (["py:nets.py:build", "--images", "photos", "--ood", "absent"], ["absent is not a folder"]),
        (["ours.pt", "--images", "photos", "--weights", "w.pt"], ["--weights does not go with a checkpoint"]),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(coloured, trained, given, words):
    Path("nets.py").write_text(
        "from torch import nn\n\n\ndef build(channels=3):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "\n\ndef grey():\n    return build(1)\n"
    )
    Path("two.txt").write_text("red\nblue\n")
    Path("twice.txt").write_text("red\nblue\ngreen\nred\n")
    torch.save(models.checkpoint(trained), "ours.pt")
    for name in ("mixed", "damaged"):
        for colour in ("blue", "red"):
            Image.new("RGB", (32, 32)).save(_made(Path(name, colour)) / "a.png")
    Image.new("RGB", (48, 32)).save("mixed/red/b.png")
    Path("damaged/red/bad.png").write_bytes(b"\x89PNG no more")
    for split in ("test", "train"):
        Image.new("RGB", (32, 32)).save(_made(Path("splits", split, "blue")) / "a.png")
    torch.save({"weight": torch.ones(2)}, "w.pt")
    _made(Path("empty/blue"))
    Image.new("RGB", (32, 32)).save(_made(Path("one/blue")) / "a.png")
    with pytest.raises(UserError) as raised:
        run(*given)
    assert all(word in str(raised.value) for word in words), raised.value
    assert not Path("build").exists()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("option", "word"),
    [
        (["--eps", "1.5"], "above 0 to 1"),
        (["--eps", "0"], "above 0 to 1"),
        (["--normalize", "imagnet"], "MEAN/STD"),
        (["--budget", "10"], "90s, 10m or 2h"),
        (["--limit", "none"], "whole number"),
        (["--size", "0"], "whole number"),
    ],
)
def test_a_bad_option_says_what_is_allowed(option, word, capsys):
    with pytest.raises(SystemExit) as ended:
        arguments.parse(None, ["m.pt", "--images", "photos", *option])
    assert ended.value.code == 2 and word in capsys.readouterr().err


def test_options_are_read_as_they_are_written():
    asked = arguments.parse(None, "m.pt --images d --eps 4/255 --budget 1.5h --normalize imagenet".split())
    assert (asked.eps, asked.budget, asked.normalize) == (4 / 255, 5400, NORMALIZATIONS["imagenet"])
    assert arguments.parse(None, ["m.pt", "--images", "d"]).eps == attacks.EIGHT
