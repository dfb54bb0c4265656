"""The version of the package, alone in a file so that `clipseg-np --version` imports nothing else."""

__version__ = "0.1.0"
