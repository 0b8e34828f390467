"""What only a GPU's step has: kernels for attention over pages, buffers of a fixed place, captured graphs.

Nothing here is imported on a machine without a GPU, but by tests: all of it takes the device as an argument and works
on "cpu" as far as there is something to do without a driver.
"""
