"""The wire contract of pkpo: the generated stubs of `pkpo.v1`, and NumPy arrays on the wire (`pkpo.packed`)."""

__version__ = "0.1.0"
