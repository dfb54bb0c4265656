"""Time whole passes with other values of the NumPy backend's constants, in turn in one process.

    python benchmarks/tune.py
    python benchmarks/tune.py --tasks "5 prompts" --only "MAX_FEATURES = 192"

For a processor that the constants were not chosen on. Prints how much longer a pass takes with each
value than with the one in the code; below 0, the value gains. A value that gains 2 % or more where
it was measured, and loses nothing elsewhere, should be the new one. Options as in tricks.py.
"""

from tricks import main

from clipseg_np.backends import numpy_kernels, numpy_layers, numpy_ops

# Each constant, the modules that read it, and other values.
CONSTANTS = {
    "MAX_FEATURES": ([numpy_ops, numpy_layers], (128, 192, 256, 768)),
    "MAX_HIDDEN": ([numpy_layers], (1 << 17, 1 << 18, 1 << 20)),
    "MAX_TOKENS_OF_BLOCKS": ([numpy_kernels], (0, 16, 24, 48)),
    "MAX_UNPACKED": ([numpy_kernels], (225_000, 450_000, 1_800_000)),
    "MIN_MULTIPLIES_PER_THREAD": ([numpy_ops, numpy_layers], (1 << 21, 1 << 25)),
    "prompts_per_slice": ([numpy_ops.NumpyOps], (2, 10)),
}
VALUES = {
    f"{name} = {value}": [(place, name, value) for place in places]
    for name, (places, values) in CONSTANTS.items()
    for value in values
}

if __name__ == "__main__":
    main(VALUES, __doc__)
