"""Guides steer decoding in addition to the captioner: one file and one line in GUIDES per guide."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sca_caption.guidance.confidence import ConfidenceGuide
from sca_caption.guidance.consensus import ConsensusReranker
from sca_caption.guidance.guide import Guide
from sca_caption.guidance.words import WordGuide
from sca_caption.runtime.errors import UserError, warn

GUIDES: dict[str, type[Guide]] = {
    guide.name: guide for guide in (ConsensusReranker, WordGuide, ConfidenceGuide)
}
REMOVED = ("objects", "presence")  # guides of earlier versions, which files may still hold


def removed_guides(guides: Mapping[str, Mapping[str, Any]], reads_features: bool = False) -> set[str]:
    """Names of guides that only earlier versions could run, and of those that need one of them.

    guides: settings or descriptions by name. reads_features: whether guides of an exported trunk read the features of
    the guide "objects", as consensus predictors of two networks do. Confidence without a rating that it was fitted with
    would be wrong.
    """
    removed = set(REMOVED).intersection(guides)
    consensus = guides.get("consensus")
    if consensus is not None and (reads_features or len(consensus.get("channels") or ()) > 1):
        removed.add("consensus")
    if removed.intersection(guides.get("confidence", {}).get("ratings") or ()):
        removed.add("confidence")
    return removed


def warn_of_removed(file: object, names: Collection[str]) -> None:
    """Print one warning that guides of a file are left out; nothing if there are none."""
    if names:
        warn(f"{file} holds guides of an earlier version, {', '.join(sorted(names))}; they are left out")


def require_known_guides(file: object, names: Iterable[str]) -> None:
    """Raise UserError if `file` has guides that are neither in GUIDES nor in REMOVED."""
    unknown = sorted(set(names) - {*GUIDES, *REMOVED})
    if unknown:
        raise UserError(
            f"{file} has unknown guides {', '.join(unknown)}; written by a newer version? upgrade sca_caption"
        )
