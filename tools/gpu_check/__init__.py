"""`make gpu-check`: the GPU's tests and benchmarks on a machine that has an NVIDIA GPU and perhaps no package registry.

`prepare` and `wheels` run before anything is installed and use the standard library alone.
"""
