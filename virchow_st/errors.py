"""Errors that a user can cause.

Each message is one line: the file or option, what was expected, what was found, and what to do.
"""

from __future__ import annotations


class VirchowSTError(Exception):
    """Base class of all errors raised on purpose; the command line prints them in one line."""


class SlideError(VirchowSTError):
    """A Space Ranger folder or a slide image is missing, damaged or not supported."""


class StoreError(VirchowSTError):
    """A store is missing, unfinished, damaged, of another format, or incompatible with others."""


class FieldError(VirchowSTError):
    """A rate field is missing, damaged or of another format."""


class ConfigError(VirchowSTError):
    """An option or a configuration file has a value that cannot be used."""
