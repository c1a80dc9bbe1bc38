"""The benchmarks run, and both sides of each compute the same thing. Times are never asserted."""

from benchmarks import sweep


def test_sweep_predicts_what_its_peers_predict():
    rows = sweep.measure(quick=True)
    assert rows.keys() == {"torchattacks", "foolbox"}
    assert all(row["equal"] == 1 and row["ratio"] > 0 for row in rows.values())
