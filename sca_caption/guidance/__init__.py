"""Guides steer decoding in addition to the captioner: one file and one line in GUIDES per guide."""

from collections.abc import Iterable

from sca_caption.guidance.confidence import ConfidenceGuide
from sca_caption.guidance.consensus import ConsensusReranker
from sca_caption.guidance.guide import Guide
from sca_caption.guidance.hallucination import HallucinationMask
from sca_caption.guidance.novel_objects import ObjectLexicon
from sca_caption.guidance.words import WordGuide
from sca_caption.runtime.errors import UserError

GUIDES: dict[str, type[Guide]] = {
    guide.name: guide
    for guide in (ObjectLexicon, HallucinationMask, ConsensusReranker, WordGuide, ConfidenceGuide)
}


def require_known_guides(file: object, names: Iterable[str]) -> None:
    """Raise UserError if `file` has guides that are not in GUIDES."""
    unknown = sorted(set(names) - set(GUIDES))
    if unknown:
        raise UserError(
            f"{file} has unknown guides {', '.join(unknown)}; written by a newer version? upgrade sca_caption"
        )
