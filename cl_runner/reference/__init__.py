"""Published figures, each with its source and protocol: a YAML file a source, read by `published`."""

from cl_runner.reference.published import Figure, Published, published

__all__ = ["Figure", "Published", "published"]
