"""BLEU by corpus_bleu of nltk, for comparison with tutorials that use it.

It differs from published BLEU (`bleu.py`) in its tokens: captions are lower-cased and split at white space, so
punctuation stays attached to words.
"""

from collections.abc import Mapping, Sequence

from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import install_command

WEIGHTS = {1: (1.0,), 2: (0.5, 0.5), 3: (1 / 3, 1 / 3, 1 / 3), 4: (0.25, 0.25, 0.25, 0.25)}


def require_nltk() -> None:
    """Raise UserError if nltk is not installed."""
    try:
        import nltk  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--nltk needs nltk, which is not installed; run: {install_command('eval')}"
        ) from error


def nltk_bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Mapping[str, float]:
    """BLEU-1 to BLEU-4 of captions against their references, 0 to 100, by metric name.

    Raises UserError if nltk is not installed.
    """
    require_nltk()
    import warnings

    from nltk.translate.bleu_score import corpus_bleu

    hypotheses = [caption.lower().split() for caption in candidates]
    several = [[reference.lower().split() for reference in each] for each in references]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns if no n-gram of some length matches; the score is then 0
        return {
            f"BLEU-{n} (nltk)": 100 * float(corpus_bleu(several, hypotheses, weights=weights))
            for n, weights in WEIGHTS.items()
        }
