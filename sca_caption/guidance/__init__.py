"""Guides steer decoding in addition to the captioner: one file and one line in GUIDES per guide."""

from sca_caption.guidance.confidence import ConfidenceGuide
from sca_caption.guidance.consensus import ConsensusReranker
from sca_caption.guidance.guide import Guide
from sca_caption.guidance.hallucination import HallucinationMask
from sca_caption.guidance.novel_objects import ObjectLexicon

GUIDES: dict[str, type[Guide]] = {
    guide.name: guide for guide in (ObjectLexicon, HallucinationMask, ConsensusReranker, ConfidenceGuide)
}
