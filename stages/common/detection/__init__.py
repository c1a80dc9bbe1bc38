"""Out-of-distribution detection: scores, detectors, what their confidences are worth, and how they are evaded."""

from stages.common.detection.measures import auroc, auroc_interval, delong_test, evaluate

__all__ = ["auroc", "auroc_interval", "delong_test", "evaluate"]
