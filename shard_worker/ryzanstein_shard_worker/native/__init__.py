"""C parts of the worker. Each has a fallback in torch: a host without a compiler loses speed, nothing else."""
