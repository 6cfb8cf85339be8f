"""Guidance by predicted words: the captioner's word predictor keeps unlikely words out of captions.

`models.word_predictor` predicts the fraction p_w of an image's captions that contain word w. This guide reads p alone.
Ranking candidates by p as well brought nothing, see docs/experiments.md.

Mentions. r_g = min(1, sum of p_w over the words of a group) estimates the fraction of captions that mention the group:
people, dogs, another animal, or a colour. The words of a group with r_g below the group's threshold are excluded, because
captioners mention frequent things that are not in the image (object hallucination, Rohrbach et al. 2018, arXiv
1809.02156).

Gender. s_m and s_f are the sums of p_w over words for men and boys, and for women and girls. If the larger one divided by
s_m + s_f reaches a threshold, the other gender's words are excluded; otherwise those of both are, and the caption says
"person" or "child". Hendricks et al. 2018 (arXiv 1803.09797) train captioners to be as cautious where the gender cannot
be seen. Words that a caption must contain are never excluded.

Shapes: B images, W words, G groups, N images to fit to.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sca_caption.guidance.groups import animals_and_colours, genders, mention_groups
from sca_caption.guidance.guide import ForcedWords, Guide, TrainedGuide
from sca_caption.guidance.masking import without_forced
from sca_caption.models.sca_cnn import State
from sca_caption.vocab import Vocabulary

GENDER = "gender"  # name of its threshold among those of the groups
MAX_THRESHOLD = 0.5  # of groups
MAX_LOST = 2  # per cent of the images whose captions mention a group may lose it
MAX_WRONG = 10  # per cent of the images with a sure gender may have the other one; 5 have references of both
MIN_IMAGES = 5  # that mention a group, or one gender, to choose a threshold


class PredictedWords(TrainedGuide):
    """Predicts the fraction of an image's captions that contain each word, (B, W). Made by `fit_words`.

    thresholds: by name of a group of `groups.mention_groups`, and GENDER. A group without a threshold is never excluded.
    """

    reads_words = True

    def __init__(self, thresholds: Mapping[str, float]):
        super().__init__()
        unknown = set(thresholds) - {"people", GENDER, *animals_and_colours()}
        if unknown:
            raise KeyError(f"unknown groups {', '.join(sorted(unknown))}")
        self.thresholds = dict(thresholds)

    def settings(self) -> dict[str, Any]:
        return {"thresholds": self.thresholds}

    def forward(self, state: State) -> Tensor:
        assert state.words is not None  # `TorchCaptioner` refuses captioners without a word predictor
        return state.words.sigmoid()


@dataclass(frozen=True)
class MentionRule:
    """A group's words, as ids, and the mention rate below which they are excluded."""

    words: tuple[int, ...]
    threshold: float


@dataclass(frozen=True)
class GenderRule:
    """Ids of the words of each gender, and the share of one of them from which on it is sure."""

    male: tuple[int, ...]
    female: tuple[int, ...]
    threshold: float


class WordGuide(Guide):
    """Excludes words of groups that few captions would mention."""

    name = "words"
    prediction = "word_probabilities"
    trained_type = PredictedWords
    excludes = True

    def __init__(self, rules: Sequence[MentionRule] = (), gender: GenderRule | None = None):
        self.rules, self.gender = list(rules), gender

    @classmethod
    def from_trained(cls, trained: PredictedWords, vocabulary: Vocabulary) -> Self:
        groups, (male, female, neutral) = mention_groups(vocabulary), genders(vocabulary)
        thresholds = trained.thresholds
        rules = [
            MentionRule(words, thresholds[name]) for name, words in groups.items() if thresholds.get(name)
        ]
        # Without a word for people of either gender, captions could not mention them at all.
        has_rule = GENDER in thresholds and bool(neutral)
        gender = GenderRule(male, female, thresholds[GENDER]) if has_rule else None
        return cls(rules, gender)

    @classmethod
    def from_json(cls, description: Mapping[str, Any], vocabulary: Vocabulary) -> Self:
        gender = description["gender"]
        return cls(
            [MentionRule(tuple(each["words"]), each["threshold"]) for each in description["rules"]],
            gender and GenderRule(tuple(gender["male"]), tuple(gender["female"]), gender["threshold"]),
        )

    def to_json(self) -> dict[str, Any]:
        rules = [asdict(rule) for rule in self.rules]
        gender = self.gender and asdict(self.gender)
        return {"rules": rules, "gender": gender}

    def banned_words(self, predicted: Tensor, forced: ForcedWords, words: int) -> Tensor | None:
        """bool (B, words) from probabilities (B, W); forced words are never banned. None without rules."""
        if not self.rules and self.gender is None:
            return None
        banned = torch.zeros(len(predicted), words, dtype=torch.bool, device=predicted.device)
        rates = mention_rates(predicted, [rule.words for rule in self.rules])
        for rate, rule in zip(rates.unbind(1), self.rules, strict=True):
            banned[:, list(rule.words)] |= (rate < rate.new_tensor(rule.threshold))[:, None]
        if self.gender is not None:
            male, female = gender_sums(predicted, self.gender.male, self.gender.female).unbind(1)
            is_sure = gender_share(male, female) >= male.new_tensor(self.gender.threshold)
            banned[:, list(self.gender.male)] |= ~(is_sure & (male > female))[:, None]
            banned[:, list(self.gender.female)] |= ~(is_sure & (female > male))[:, None]
        return without_forced(banned, forced)


def mention_rates(probabilities: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Estimated fraction of captions that mention each group: (B, W) -> (B, G)."""
    rates = [probabilities[:, list(words)].sum(1).clamp(max=1) for words in groups]
    return torch.stack(rates, 1) if rates else probabilities.new_zeros(len(probabilities), 0)


def gender_sums(probabilities: Tensor, male: Sequence[int], female: Sequence[int]) -> Tensor:
    """s_m and s_f: (B, W) -> (B, 2)."""
    return torch.stack([probabilities[:, list(words)].sum(1) for words in (male, female)], 1)


def gender_share(male: Tensor, female: Tensor) -> Tensor:
    """Share of the larger of s_m and s_f (B,) in their sum, 0.5 to 1; NaN if both are 0."""
    return torch.maximum(male, female) / (male + female)


def fit_words(
    vocabulary: Vocabulary,
    rates: Tensor,
    sums: Tensor,
    references: Sequence[Sequence[Iterable[int]]],
) -> tuple[PredictedWords, list[str]]:
    """Choose the thresholds, in closed form, and describe them by the rows of a table.

    Args:
        rates: `mention_rates` of the N images for `groups.mention_groups` (N, G). sums: their `gender_sums` (N, 2).
        references: of each image, the ids of each reference's words.

    An image mentions a group if at least 2 in 5 of its references have one of its words. The threshold of a group is the
    largest one up to MAX_THRESHOLD at which at most MAX_LOST per cent of the images that mention the group lose it; 0 if
    fewer than MIN_IMAGES do. For gender see `gender_threshold`.
    """
    thresholds, lines = (
        {},
        ["| group | threshold | images with it | lose it | images without it | excluded |"],
    )
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    groups, (male_words, female_words, _) = mention_groups(vocabulary), genders(vocabulary)
    sets = [[frozenset(each) for each in several] for several in references]
    for rate, (name, words) in zip(rates.unbind(1), groups.items(), strict=True):
        fractions = [(sum(not each.isdisjoint(words) for each in several), len(several)) for several in sets]
        mention = torch.tensor([5 * count >= 2 * total for count, total in fractions])
        without = torch.tensor([count == 0 for count, _ in fractions])
        chosen = thresholds[name] = mention_threshold(rate[mention])
        low = rate < chosen
        counts = (mention.sum(), (mention & low).sum(), without.sum(), (without & low).sum())
        lines.append(f"| {name} | {chosen:.3f} | {' | '.join(str(int(count)) for count in counts)} |")
    people = groups.get("people", ())
    found = [gender_of(several, people, male_words, female_words) for several in sets]
    rows = [row for row, gender in enumerate(found) if gender is not None]
    if len(rows) < MIN_IMAGES:
        lines.append(f"no rule for gender: {len(rows)} images whose references mention one gender")
    else:
        is_male, (male, female) = torch.tensor([found[row] == "male" for row in rows]), sums[rows].unbind(1)
        chosen = thresholds[GENDER] = gender_threshold(male, female, is_male)
        sure = (gender_share(male, female) >= chosen) & (male != female)
        wrong = sure & ((male > female) != is_male)
        lines.append(
            f"gender: threshold {chosen:.3f}; of {len(rows)} images whose references mention one gender, "
            f"{int(sure.sum())} are sure, {int(wrong.sum())} of them wrong"
        )
    return PredictedWords(thresholds), lines


def mention_threshold(rates: Tensor) -> float:
    """The threshold of a group, see `fit_words`. rates: of the images that mention it."""
    if len(rates) < MIN_IMAGES:
        return 0.0
    may_lose = len(rates) * MAX_LOST // 100
    return min(MAX_THRESHOLD, rates.sort().values[may_lose].item())


def gender_threshold(male: Tensor, female: Tensor, is_male: Tensor) -> float:
    """The smallest threshold at which at most MAX_WRONG per cent of the sure images are of the other gender.

    male, female: s_m and s_f of images whose references mention one gender. is_male: which. An image is sure if its
    `gender_share` is at least the threshold. Candidates are 0.5, all shares, and 1, which is returned if none is good.
    """
    differ = male != female  # others are never sure
    male, female, is_male = male[differ], female[differ], is_male[differ]
    shares, rank = gender_share(male, female).unique(return_inverse=True)  # ascending
    is_wrong = (male > female) != is_male
    # Per share, how many images have it or a larger one, and how many of these are wrong.
    sure, wrong = (
        torch.bincount(rank[which], minlength=len(shares)).flip(0).cumsum(0).flip(0)
        for which in (torch.ones_like(is_wrong), is_wrong)
    )
    good = (100 * wrong <= MAX_WRONG * sure).nonzero().flatten().tolist()
    if not len(shares) or (good and good[0] == 0):
        return 0.5
    return shares[good[0]].item() if good else 1.0


def gender_of(
    references: Sequence[frozenset[int]], people: Sequence[int], male: Sequence[int], female: Sequence[int]
) -> str | None:
    """The gender that the references (ids of words) mention: "male", "female", or None for none or both.

    References that mention no people are left out, because pronouns also stand for animals.
    """
    mentioned = {word for each in references if not each.isdisjoint(people) for word in each}
    found = [name for name, words in (("male", male), ("female", female)) if not mentioned.isdisjoint(words)]
    return found[0] if len(found) == 1 else None
