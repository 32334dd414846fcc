"""The licence of a shared run: whether that of its encoder allows sharing, and the card's entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from virchow_st.errors import ConfigError

# Licences that let derived models be passed on, by their ids on the Hub.
_PERMISSIVE = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense"}
)
# Further licences that the Hub knows by an id; any other is given as the address of its text.
_KNOWN = _PERMISSIVE | {
    "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0",
    "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "openrail", "afl-3.0", "artistic-2.0", "isc",
}  # fmt: skip
_FORBIDS = re.compile(
    r"(?<![a-z])(nc|nd)(?![a-z])|non-?commercial|no-?derivat|not to be passed on", re.IGNORECASE
)
_STAIN = "stain"  # the built-in encoder, under the licence of this package


@dataclass(frozen=True)
class Terms:
    """The licence of a shared model, as a model card states it.

    Attributes:
        id: id of the licence on the Hub, or ``other``.
        name: short name of a licence that the Hub has no id for; otherwise empty.
        link: address of that licence's text; otherwise empty.
    """

    id: str
    name: str = ""
    link: str = ""


def sharing_terms(encoder: Mapping[str, str], chosen: str = "") -> Terms:
    """The licence to share a run under.

    A decoder is derived from its encoder's tokens, so the encoder's terms for derived models apply
    to it. This is a check of licence names and not legal advice.

    Args:
        encoder: ``name`` and ``licence`` from the run's checkpoint.
        chosen: the author's choice: an id of the Hub such as ``apache-2.0``, or the address of a
            licence's text; empty for the encoder's licence.

    Raises:
        ConfigError: the encoder's licence forbids non-commercial use or derived models; or it is
            not known to allow sharing, and no licence was chosen; or the choice is no licence.

    Example:
        >>> sharing_terms({"name": "stain", "licence": ""})
        Terms(id='mit', name='', link='')
        >>> sharing_terms({"name": "owner/vit", "licence": "apache-2.0: see https://…"}).id
        'apache-2.0'
    """
    name, licence = encoder["name"], encoder["licence"]
    if _FORBIDS.search(licence):
        raise ConfigError(
            f"{name}: its licence forbids to pass on models made with it ({licence}); train on "
            "tokens of an encoder that may be shared, such as stain or an Apache-2.0 ViT"
        )
    if chosen:
        return _chosen(chosen)
    own = "mit" if name == _STAIN else licence.partition(":")[0].strip().lower().replace(" ", "-")
    if own not in _PERMISSIVE:
        stated = f"is {licence!r}" if licence else "is not known"
        raise ConfigError(
            f"{name}: its licence {stated}, which may not allow to share models made with it; read "
            "it, and if it does, give the licence of your model with --license"
        )
    return Terms(own)


def _chosen(text: str) -> Terms:
    if text.lower() in _KNOWN:
        return Terms(text.lower())
    if re.fullmatch(r"https://[^\s\"'<>()]+", text):
        name = re.sub(r"[^a-z0-9.]+", "-", text.rstrip("/").rpartition("/")[2].lower()).strip("-.")
        return Terms("other", name or "custom", text)
    raise ConfigError(
        f"license: expected an id that the Hugging Face Hub knows, such as apache-2.0, mit or "
        f"cc-by-4.0, or the https:// address of a licence's text; got {text!r:.80}"
    )
