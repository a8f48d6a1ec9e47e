"""Reads run folders and compares them. Knows nothing of training."""
