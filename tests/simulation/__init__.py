"""The whole system without clocks, sockets, processes or a model: what decides is real, the world around it is not.

One integer says everything that happens in a schedule, so that a failure is replayed by its seed.
"""
