"""The version of the package, alone in a file so that setup.cfg can read it without importing NumPy."""

__version__ = "0.2.0"
