"""Version of the package, read by the build and by every run and report."""

__version__ = "0.1.0"
