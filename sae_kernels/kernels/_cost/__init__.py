"""What a sparse product costs and what the dense one instead would: constants of the device, formulas on shapes.

`constants` says what a device can do (built in, or measured by `sae-kernels bench calibrate`), `model` turns that into
milliseconds, `estimates` are what kernels register. `_kernel.select` compares.
"""
