"""The audit: whether the figures of a model, and the attacks on it, may be believed."""
