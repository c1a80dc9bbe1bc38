"""Train the standard classifier.

In:  data/prepared/{train,val,test}.npz
Out: data/checkpoints/standard.pt, metrics/train_standard.json, plots/training_standard.csv
"""

from stages.common import artifacts, device, errors, evaluation, images, models, params, training, workspace


def main() -> None:
    knobs = params.load()
    where = device.choose(knobs.device)
    sets = {name: images.read(name) for name in ("train", "val", "test")}

    epochs, smoothing = knobs.data.train_standard.epochs, knobs.train_standard.label_smoothing
    recipe = training.Recipe.from_params(knobs, where, epochs=epochs, label_smoothing=smoothing)
    model = training.new_model(knobs, sets["train"]).to(where)
    table = artifacts.PLOTS / "training_standard.csv"  # grows by a row an epoch: dvc plots show draws it at any time
    result = training.train(
        model,
        sets["train"],
        sets["val"],
        recipe,
        resume_in=workspace.resume_folder(),
        log=lambda rows: artifacts.write_table(table, rows),
        name="standard",
    )

    found = {name: evaluation.accuracies(model, image_set) for name, image_set in sets.items()}
    accuracy, balanced = ({name: pair[kind] for name, pair in found.items()} for kind in (0, 1))
    metrics = {"accuracy": accuracy, "balanced_accuracy": balanced, "epoch": result.epoch}
    artifacts.write_metrics(artifacts.METRICS / "train_standard.json", metrics)
    artifacts.write_checkpoint(artifacts.CHECKPOINTS / "standard.pt", models.checkpoint(model))
    print(f"standard: test accuracy {accuracy['test']:.4f}")


if __name__ == "__main__":
    errors.run_stage(main)
