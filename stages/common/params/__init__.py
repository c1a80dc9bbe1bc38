"""A typed, validated view of params.yaml: every stage loads it whole, so a bad value stops the run before any work."""

from stages.common.params.loading import Params, load, load_prepared

__all__ = ["Params", "load", "load_prepared"]
