"""Keeping a run while it goes on, so that it can be taken up after an interruption, at the very step."""
