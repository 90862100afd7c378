"""The version, in one place: pyproject.toml, ``nlrn.__version__`` and the workflow of a release read it here."""

__version__ = "0.2.0"
