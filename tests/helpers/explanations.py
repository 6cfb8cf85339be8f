"""Made explanations, whose attention is known, of made photographs."""

from collections.abc import Sequence

import numpy as np

from sca_caption.explain.explanation import Explanation
from sca_caption.images import Transform
from sca_caption.inference.captioning import Caption
from sca_caption.models.attention_trace import LayerTrace, Trace
from tests.helpers.made_photos import photo

WORDS = ("a", "dog", "runs", "on", "the", "grass")


def made_explanation(
    words: Sequence[str] = WORDS,
    layers: Sequence[tuple[str, int, int, int]] = (("layer4.1", 40, 7, 5),),  # name, C, H, W
    kinds: str = "SC",
    size: tuple[int, int] = (120, 80),
    mode: str = "resize",
    even: bool = False,
) -> Explanation:
    """Random weights, or even ones; `kinds` says which there are."""
    random, T = np.random.default_rng(0), len(words)

    def weights(count: int) -> np.ndarray:
        found = np.full((T, count), 1 / count) if even else random.dirichlet(np.full(count, 0.5), T)
        return found.astype(np.float32)

    traced = tuple(
        LayerTrace(
            name,
            weights(H * W).reshape(T, H, W) if "S" in kinds else None,
            weights(C) if "C" in kinds else None,
        )
        for name, C, H, W in layers
    )
    maps = tuple(random.uniform(0, 6, (C, H, W)).astype(np.float32) for _, C, H, W in layers)
    trace = Trace(random.uniform(0.001, 1, T).astype(np.float32), traced)
    caption = Caption(" ".join(words), -9.0, -1.5, True, -1.3)
    return Explanation(photo(1, size), Transform(64, mode), caption, tuple(words), trace, maps)
