"""The errors a user can meet. Each message is one line: what, expected, came, what to do."""

from __future__ import annotations


class VirchowSTError(Exception):
    """Root of every error raised on purpose; the command line prints it in one line."""


class SlideError(VirchowSTError):
    """A Space Ranger folder or a slide image is not what it has to be."""


class StoreError(VirchowSTError):
    """A store is missing, unfinished, foreign, damaged, or does not fit the others."""


class ConfigError(VirchowSTError):
    """An option or a configuration file holds a value that cannot be used."""
