"""Raw data of a few images, made in every form that prepare reads, and what prepare makes of them."""

import hashlib
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages import prepare
from stages.common import artifacts, class_names
from stages.common.datasets import cifar
from stages.common.datasets.sources import RAW
from stages.common.errors import UserError
from tests.repository import ROOT

PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")
OOD = ["clock", "bottle"]
COUNTS = {"train": 6, "test": 2}
ODD_IMAGES = [("L", (50, 20)), ("RGBA", (9, 70)), ("P", (33, 33)), ("RGB", (8, 8)), ("CMYK", (40, 41)), ("1", (30, 5))]


def choose(dataset, *, seed=0, target=None, **knobs):
    """Write a params.yaml that takes this data set, with these knobs of its own or of its `prepare` section."""
    content = json.loads(json.dumps(PARAMS)) | {"dataset": dataset, "seed": seed}
    section = content["datasets"][dataset]
    section |= {key: value for key, value in knobs.items() if key in section}
    section["prepare"] |= {"extra_sets": []} | {key: value for key, value in knobs.items() if key not in section}
    content["ood_eval"] |= {"neighbours": 1, "guides": 1}  # prepare refuses more than there are training images
    if target:
        content["datasets"][dataset]["target"] = target
    YAML(typ="safe").dump(content, Path("params.yaml"))


def outcome():
    """Every byte that prepare writes."""
    prepare.main()
    return {path.name: path.read_bytes() for path in [*artifacts.PREPARED.iterdir(), prepare.METRICS]}


def refused(*words):
    """prepare must refuse with a message that holds `words`, and write nothing."""
    with pytest.raises(UserError) as caught:
        prepare.main()
    for word in words:
        assert word in str(caught.value)
    assert not artifacts.PREPARED.exists() and not artifacts.METRICS.exists()


def cifar_images():
    """name -> (split, class, file) -> pixels (32, 32, 3). One training image of each class stands there twice."""
    rng = np.random.default_rng(0)
    sets = {}
    for name, classes in {"cifar10": class_names.CIFAR10, "cifar100": OOD}.items():
        sets[name] = {
            (split, c, f"{i}.png"): rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            for split, count in COUNTS.items()
            for c in classes
            for i in range(count)
        }
        for c in classes:
            sets[name]["train", c, "5.png"] = sets[name]["train", c, "0.png"]
    return sets


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def write_zip(name, images, root=RAW, top=None, extra=()):
    with zipfile.ZipFile(Path(root) / f"{name}.zip", "w") as archive:
        for key, pixels in images.items():
            archive.writestr("/".join([f"{name}" if top is None else top, *key]).lstrip("/"), png(pixels))
        for member, content in extra:
            archive.writestr(member, content)


def write_zips(sets=None, **options):
    for name, images in (sets or cifar_images()).items():
        write_zip(name, images, **options)


def write_folders(sets):
    for name, images in sets.items():
        for key, pixels in images.items():
            path = RAW.joinpath(name, *key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))


def python2_pickle(pixels, numbers, key):
    """A batch in the very form of the official ones: protocol 2, written by Python 2's numpy."""

    def text(content):
        return b"T" + struct.pack("<i", len(content)) + content

    shape = b"J" + struct.pack("<i", pixels.shape[0]) + b"J" + struct.pack("<i", pixels.shape[1]) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in numbers) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(key.encode()) + numbers + b"u."


def official_files(name, images):
    official, rng = cifar.OFFICIAL[name], np.random.default_rng(1)
    for split, batches in official.batches.items():
        keys = [key for key in images if key[0] == split]
        for batch, chosen in zip(batches, np.array_split(rng.permutation(len(keys)), len(batches)), strict=True):
            pixels = np.stack([images[keys[i]].transpose(2, 0, 1).reshape(-1) for i in chosen])
            numbers = [official.classes.index(keys[i][1]) for i in chosen]
            yield f"{official.folder}/{batch}", python2_pickle(pixels, numbers, official.labels_key)


def write_tar(name, images, monkeypatch, folder=RAW):
    """The official archive of these images, whose sum is made the expected one."""
    path = Path(folder) / cifar.OFFICIAL[name].archive
    with tarfile.open(path, "w:gz") as archive:
        for member, content in official_files(name, images):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "OFFICIAL", cifar.OFFICIAL | {name: cifar.OFFICIAL[name]._replace(md5=md5)})
    return path


def write_class(folder, shade, images=ODD_IMAGES):
    """A class folder of images of any size and mode."""
    Path(folder).mkdir(parents=True)
    for i, (mode, size) in enumerate(images):
        image = Image.new("RGB", size, (shade, 20 * i, 0)).convert(mode)
        image.save(Path(folder) / f"{i}.{'jpg' if mode == 'CMYK' else 'PNG' if mode == '1' else 'png'}")
