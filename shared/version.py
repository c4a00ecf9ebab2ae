"""The version, from the installed package: pyproject.toml is its one place."""

from importlib.metadata import version

VERSION = version("midstream")
