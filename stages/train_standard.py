"""Train the standard classifier, or adopt one.

In:  data/prepared/{train,val,test}.npz
Out: data/checkpoints/standard.pt, metrics/train_standard.json, plots/training_standard.csv
"""

from stages.common import artifacts, params, stage, training


def main() -> None:
    knobs = params.load_prepared()
    learnt = training.learn(knobs, "standard")
    artifacts.write_metrics(artifacts.METRICS / "train_standard.json", learnt.metrics)
    print(f"standard: test accuracy {learnt.metrics['accuracy']['test']:.4f}")


if __name__ == "__main__":
    stage.run(main)
