"""C parts of the worker. Each has a fallback: a host without a compiler loses speed, nothing else."""
