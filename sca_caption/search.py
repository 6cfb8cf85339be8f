"""How captions are searched for: what captioning, evaluation and `decode` share, readable without torch."""

from dataclasses import dataclass

from sca_caption.config import require, setting

BATCH_SIZE = 16  # images searched at once


@dataclass(frozen=True)
class SearchConfig:
    """Search for captions. Raises UserError when a value makes no sense."""

    beam_size: int = setting(7, "captions that grow side by side; 1: greedy, the fastest")
    num_captions: int = setting(1, "captions an image, best first; at most the beam size")
    min_length: int = setting(1, "fewest words in a caption")
    max_length: int = setting(20, "most words in a caption")
    length_penalty: float = setting(
        0.6, "rank by log-probability / length^X; 0: as it is; more favours longer captions"
    )
    block_ngrams: int = setting(2, "never say the same N words in a row twice, nor 'W W' or 'W and W'; 0: off")
    sound_endings: bool = setting(True, "never end in 'a', 'with', 'and', ...")
    consensus: float = setting(5.5, "nats added to captions of the words that people would use; 0: off")
    diverse_groups: int = setting(1, "groups of beams that differ")
    diversity: float = setting(0.5, "nats off a word for each beam of groups before that says it")

    @property
    def ranked(self) -> int:
        """Captions that a search finds where consensus ranks them, the later ones often better; 1 of greedy search."""
        return 2 * self.beam_size if self.beam_size > 1 else 1

    def __post_init__(self):
        for name in ("beam_size", "num_captions", "min_length", "max_length"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "block_ngrams", self.block_ngrams >= 0, "0 (off) or more")
        require(self, "length_penalty", abs(self.length_penalty) <= 10, "from -10 to 10")
        require(
            self, "min_length", self.min_length <= self.max_length, f"at most --max-length {self.max_length}"
        )
        require(self, "diversity", self.diversity >= 0, "0 or more")
        require(self, "consensus", 0 <= self.consensus < float("inf"), "0 or more")
        even = self.diverse_groups >= 1 and self.beam_size % self.diverse_groups == 0
        require(self, "diverse_groups", even, f"a divisor of --beam-size {self.beam_size}")
        limit = f"at most --beam-size {self.beam_size}; ask for fewer captions or widen the beam"
        require(self, "num_captions", self.num_captions <= self.beam_size, limit)


@dataclass(frozen=True)
class SamplingConfig:
    """Draw captions at random in place of the search (--sample). Raises UserError when a value makes no sense."""

    temperature: float = setting(1.0, "below 1: likelier words")
    top_k: int = setting(0, "of the N likeliest words; 0: all")
    top_p: float = setting(0.9, "of the likeliest that sum to X")
    seed: int = setting(0, "same seed, same captions")

    def __post_init__(self):
        require(self, "temperature", 0 < self.temperature < float("inf"), "above 0")
        require(self, "top_k", self.top_k >= 0, "0 (all) or more")
        require(self, "top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
