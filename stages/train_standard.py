"""Train the standard classifier.

In:  data/prepared/{train,val,test}.npz
Out: data/checkpoints/standard.pt, metrics/train_standard.json, plots/training_standard.csv
"""

from stages.common import artifacts, errors, evaluation, images, models, params, training, workspace


def main() -> None:
    knobs = params.load()
    device = images.device(knobs.device)
    sets = {name: images.read(name) for name in ("train", "val", "test")}

    recipe = training.recipe(
        knobs, epochs=knobs.data.training.epochs_standard, label_smoothing=knobs.training.label_smoothing, device=device
    )
    model, options = training.new_model(knobs, sets["train"])
    table = artifacts.PLOTS / "training_standard.csv"  # grows by a row an epoch: dvc plots show draws it at any time
    result = training.train(
        model,
        sets["train"],
        sets["val"],
        recipe,
        device=device,
        resume_in=workspace.resume_folder(),
        log=lambda rows: artifacts.write_table(table, rows),
        name="standard",
    )

    accuracy = {name: evaluation.accuracy(model, image_set, device=device) for name, image_set in sets.items()}
    checkpoint = models.checkpoint(model, name=knobs.model.name, options=options)
    artifacts.write_metrics(artifacts.METRICS / "train_standard.json", {"accuracy": accuracy, "epoch": result.epoch})
    artifacts.write_checkpoint(artifacts.CHECKPOINTS / "standard.pt", checkpoint)
    print(f"standard: test accuracy {accuracy['test']:.4f}")


if __name__ == "__main__":
    errors.run(main)
