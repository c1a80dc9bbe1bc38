"""Write the trained models for other programs: build/export/{standard,robust}.{safetensors,onnx}

    python -m scripts.export                                 # both models, both formats; or make export
    python -m scripts.export robust --format safetensors     # one of each

Either file holds the whole model, its normalisation inside: float32 images (N, C, H, W) with pixels in [0, 1] go in,
logits (N, K) come out, for any N. Its metadata name the classes. ONNX needs `pip install -e '.[export]'`, and is kept
only if onnxruntime answers it as torch does. docs/weights.md shows how both are read.
"""

import argparse
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from stages.common import artifacts, errors, models
from stages.common.artifacts import CHECKPOINTS, METRICS, MODELS
from stages.common.errors import UserError
from stages.common.models import Classifier

OUT = Path("build/export")
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # by ONNX: the extra `export` of pyproject.toml
BATCHES = (1, 5)  # sizes that onnxruntime is compared at
TOLERANCE = 1e-4  # of the largest logit, or of 1 if that is smaller: float32 in another order
# Since 2.9 torch's newer exporter is the default; that of 2.6 fails on BatchNorm
MODERN_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)


def described(model: Classifier, size: int) -> dict[str, str]:
    """The metadata of an exported model for images of `size` x `size` pixels; lists and dicts as JSON."""
    channels = model.recipe["channels"]
    return {
        "input": f"images: float32 (N, {channels}, {size}, {size}), pixels in [0, 1], not normalised",
        "output": f"logits: float32 (N, {len(model.classes)})",
        "classes": json.dumps(model.classes),
        "model": json.dumps(model.recipe),  # the arguments of stages.common.models.build
    }


def as_safetensors(model: Classifier, size: int) -> bytes:
    """The state dict, which models.build(**metadata["model"]) loads. Equal models give equal bytes."""
    content = safetensors.torch.save(models.checkpoint(model)["state"], {"format": "pt", **described(model, size)})
    start = 8 + int.from_bytes(content[:8], "little")  # of the tensors, behind a header whose keys have any order
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


def as_onnx(model: Classifier, size: int) -> bytes:
    """The network as ONNX, without the traces of source files that torch's exporter leaves in it.

    Raises UserError where the packages are missing, where the model cannot be written as ONNX, and where onnxruntime
    gives other logits than torch.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}: pip install -e '.[export]', or ask for --format safetensors alone"
        )
    import onnx

    try:
        exported = onnx.load_from_string(_exported(model, torch.rand(2, model.recipe["channels"], size, size)))
        for part in (exported.graph, *exported.functions):
            for node in part.node:
                del node.metadata_props[:]
                node.doc_string = ""
        onnx.helper.set_model_props(exported, described(model, size))
        content: bytes = exported.SerializeToString(deterministic=True)
        furthest = difference(content, model, size)
    except Exception as error:  # exporter and runtime have types of their own for each of their steps
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"this model cannot be written as ONNX: {reason[:200]}; ask for --format safetensors") from None
    if not furthest <= TOLERANCE:
        raise UserError(f"onnxruntime's logits are {furthest:.1e} away from torch's: nothing was written")
    return content


def _exported(model: Classifier, images: Tensor) -> bytes:
    """What torch's exporter makes of a model, for batches of any size of such images."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names packages that nobody needs here
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        write = partial(torch.onnx.export, model, (images,), path, input_names=["images"], output_names=["logits"])
        if MODERN_TORCH:
            batch = {"images": {0: torch.export.Dim("batch")}}
            write(dynamo=True, dynamic_shapes=batch, external_data=False, verbose=False)
        else:
            write(dynamo=False, dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}})
        return path.read_bytes()


@torch.no_grad()
def difference(content: bytes, model: Classifier, size: int) -> float:
    """The largest difference of onnxruntime's logits from torch's, as a share of the largest logit if that is above 1.

    Of made-up images with pixels in [0, 1], in batches of several sizes.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator, furthest = torch.Generator().manual_seed(0), 0.0
    for batch in BATCHES:
        images = torch.rand(batch, model.recipe["channels"], size, size, generator=generator)
        logits = model(images)
        answer = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        furthest = max(furthest, float((answer - logits).abs().max() / logits.abs().max().clamp(min=1)))
    return furthest


FORMATS: Mapping[str, Callable[[Classifier, int], bytes]] = {"safetensors": as_safetensors, "onnx": as_onnx}


def load(name: str) -> Classifier:
    path = CHECKPOINTS / f"{name}.pt"
    if not path.is_file():
        raise UserError(f"{path} is missing: `make weights` brings the one of this commit, `dvc repro` trains one")
    return models.load_checkpoint(path)


def side(model: Classifier) -> int:
    """Pixels a side of the images that a model was trained on. Raises UserError where nothing says so."""
    path = METRICS / "data.json"
    try:
        return int(model.size or json.loads(path.read_text())["image_shape"][-1])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UserError(f"{path} does not say how large the images are; run `dvc repro prepare`") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{' or '.join(MODELS)}; both if none is named")
    parser.add_argument("--format", choices=FORMATS, help="one format; both if it is not said")
    asked = parser.parse_args()
    if unknown := set(asked.models) - set(MODELS):
        parser.error(f"there is no model {', '.join(sorted(unknown))}: name {' or '.join(MODELS)}")

    def export() -> None:
        found = {name: load(name) for name in asked.models or MODELS}
        written = {
            OUT / f"{name}.{form}": FORMATS[form](model, side(model))
            for name, model in found.items()
            for form in ([asked.format] if asked.format else FORMATS)
        }
        for path, content in written.items():
            artifacts.write_bytes(path, content)
            print(f"{path}: {len(content) / 1e6:.1f} MB")

    errors.run(export)


if __name__ == "__main__":
    main()
