"""Novel object captioning: captions name what ImageNet's classifier sees, even if the captioner lacks the word.

If a probable noun (see `object_nouns`, `object_classifier`) is missing from the best caption, a second, constrained beam
search must insert it (see `decoding.lexical_constraints`), and its caption is taken unless the captioner finds it too
improbable. A noun that the vocabulary lacks gets the mean vectors of the most similar nouns that it has, so that it
appears where they would (Anderson et al. 2017, arXiv 1612.00576). New words are available only to images that must
mention them.

Shapes: B images, W words.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sca_caption.decoding.lexical_constraints import MAX_GROUPS
from sca_caption.decoding.rules import CONJUNCTIONS, PREPOSITIONS, VERBS
from sca_caption.guidance.guide import ForcedWords, Guide, Insertion
from sca_caption.guidance.masking import GrammaticalWords, word_mask
from sca_caption.guidance.object_classifier import ObjectClassifier
from sca_caption.guidance.object_nouns import Noun
from sca_caption.vocab import EOS, SPECIALS, Vocabulary

DONORS = 3  # nouns whose vectors make those of a new word
NO_NOUN_AFTER = ("to", "of", "people")  # in the singular, without an article: "a group of tray"
NO_NOUNS_AFTER = ("is", "are")  # nor in the plural: "people are computers in the air"
AFTER_NOUN = frozenset(f"{PREPOSITIONS} {CONJUNCTIONS} {VERBS}".split())  # and -ing; not "a laptop bench"
VOWEL = re.compile(r"[aeio]|u(?!ni)|hour")  # takes "an"


@dataclass(frozen=True)
class Limits:
    """From which probability on a noun is inserted, and what it may cost.

    Chosen on Flickr8k's validation images and the even half of Caltech-101's classes (see benchmarks/guidance.py).
    """

    threshold: float = 0.2  # probability from which on a noun is tried
    margin: float = 0.8  # it may lower the caption's score by margin + margin_per_probability * probability
    margin_per_probability: float = 2.2
    specific_share: float = 0.5  # share of a general noun's probability for a specific one to replace it
    absent: float = 0.1  # probability below which other nouns of the same kind are excluded


@dataclass
class ObjectLexicon(Guide):
    """The nouns that captions can be made to contain, and the grammar of doing so."""

    name = "objects"
    prediction = "noun_probabilities"
    trained_type = ObjectClassifier
    about_objects = True
    inserts = True

    nouns: Sequence[Noun]
    vocabulary: Vocabulary  # the captioner's words, then the new ones
    groups: Sequence[Sequence[int]]  # ids of each noun's words
    disagreeing: Mapping[int, Tensor]  # after this word, these forms of nouns (W,) are ungrammatical
    no_compound: Tensor  # (W,): words that do not follow an inserted noun
    limits: Limits = field(default_factory=Limits)
    new_words: Sequence[str] = ()
    word_weights: Tensor | None = None  # (new, known), see `Guide`

    @classmethod
    def from_trained(cls, trained: ObjectClassifier, vocabulary: Vocabulary) -> Self:
        new = [noun.name for noun in trained.nouns if noun.name not in vocabulary]
        words = Vocabulary([*vocabulary.words[len(SPECIALS) :], *new])
        groups = [
            words.encode(form for form in (noun.name, noun.plural) if form and form in words)
            for noun in trained.nouns
        ]
        may_follow = [word in AFTER_NOUN or word.endswith("ing") for word in words]
        may_follow[EOS] = True
        weights = donor_weights(trained, vocabulary, new)
        disagreeing = disagreeing_forms(trained.nouns, words)
        no_compound = ~torch.tensor(may_follow)
        return cls(
            trained.nouns, words, groups, disagreeing, no_compound, new_words=new, word_weights=weights
        )

    @classmethod
    def from_json(cls, description: Mapping[str, Any], vocabulary: Vocabulary) -> Self:
        size = len(vocabulary)
        nouns = tuple(
            Noun(each["kind"], each["name"], each["plural"], tuple(each["forms"]), tuple(each["classes"]))
            for each in description["nouns"]
        )
        return cls(
            nouns,
            vocabulary,
            [each["group"] for each in description["nouns"]],
            {after: word_mask(wrong, size) for after, wrong in description["disagreeing"]},
            word_mask(description["no_compound"], size),
            Limits(**{each.name: description[each.name] for each in fields(Limits)}),
            description["new_words"],
        )

    def to_json(self) -> dict[str, Any]:
        forms = {word for group in self.groups for word in group}
        return asdict(self.limits) | {
            "max_groups": MAX_GROUPS,
            "new_words": list(self.new_words),
            "nouns": [
                asdict(noun) | {"group": group} for noun, group in zip(self.nouns, self.groups, strict=True)
            ],
            "disagreeing": [
                [after, [word for word in mask.nonzero().flatten().tolist() if word in forms]]
                for after, mask in self.disagreeing.items()
            ],
            "no_compound": self.no_compound.nonzero().flatten().tolist(),
        }

    def insertion(
        self, predicted: Tensor, captions: Sequence[str], forced: ForcedWords, banned: Tensor
    ) -> Insertion | None:
        """Insert the most probable noun of each image whose caption lacks it; predicted: (B, nouns)."""
        highest = predicted.amax(1).tolist()
        chosen = {}
        for image, caption in enumerate(captions):
            if highest[image] >= self.limits.threshold and len(forced[image]) < MAX_GROUPS:
                noun = self.most_probable(predicted[image])
                if not self.nouns[noun].is_in(caption):
                    chosen[image] = noun
        if not chosen:
            return None
        banned, inserted = banned.clone(), torch.zeros_like(banned)
        for image, noun in chosen.items():
            banned[image, self._other_nouns(noun, predicted[image])] = True
            banned[image, [word for group in forced[image] for word in group]] = False
            banned[image, self.groups[noun]] = False
            inserted[image, self.groups[noun]] = True
        device = banned.device
        disagreeing = {after: mask.to(device) for after, mask in self.disagreeing.items()}
        mask = GrammaticalWords(banned, inserted, disagreeing, self.no_compound.to(device))
        margins = [
            self.limits.margin + self.limits.margin_per_probability * highest[image] for image in chosen
        ]
        return Insertion([*chosen], [self.groups[noun] for noun in chosen.values()], mask, margins)

    def most_probable(self, probabilities: Tensor) -> int:
        """The most probable noun of one image, or a more specific one (rooster for bird) that is nearly as probable."""
        best = int(probabilities.argmax())
        specific = [
            column
            for column, noun in enumerate(self.nouns)
            if set(noun.classes) < set(self.nouns[best].classes)
            and probabilities[column] >= self.limits.specific_share * probabilities[best]
        ]
        return min(specific, key=lambda column: len(self.nouns[column].classes), default=best)

    def _other_nouns(self, noun: int, probabilities: Tensor) -> list[int]:
        """Words for other objects of the noun's kind that are not in the image."""
        inserted, words = self.nouns[noun], []
        for other, probability in zip(self.nouns, probabilities.tolist(), strict=True):
            same_kind = inserted.kind and other.kind == inserted.kind
            if (
                same_kind
                and set(inserted.classes).isdisjoint(other.classes)
                and probability < self.limits.absent
            ):
                words += [form for form in other.forms if form in self.vocabulary]
        return self.vocabulary.encode(word for word in words if word not in inserted.forms)


def donor_weights(classifier: ObjectClassifier, vocabulary: Vocabulary, new: Sequence[str]) -> Tensor:
    """Weights of known words in the vectors of new words: (new, known). Rows sum to 1, or to 0 without donors.

    Nouns are similar if the classifier's weights of their classes are.
    """
    weights = classifier.classifier.weight - classifier.classifier.weight.mean(0)
    vectors = F.normalize(classifier.membership.T @ weights, dim=1)  # (nouns, 1280)
    shares = torch.zeros(len(new), len(vocabulary), device=vectors.device)
    names = [noun.name for noun in classifier.nouns]
    donors = [column for column, word in enumerate(names) if word in vocabulary]
    ids = torch.tensor(
        vocabulary.encode(names[column] for column in donors), dtype=torch.long, device=vectors.device
    )
    for row, word in enumerate(new):
        nearest = (vectors[donors] @ vectors[names.index(word)]).topk(min(DONORS, len(donors))).indices
        shares[row, ids[nearest]] = 1 / max(1, len(nearest))
    return shares


def disagreeing_forms(nouns: Sequence[Noun], vocabulary: Vocabulary) -> dict[int, Tensor]:
    """After "a", "an", "is" and others: which forms of nouns (W,) must not follow."""
    vowel = torch.tensor([VOWEL.match(word) is not None for word in vocabulary])
    counted = {noun.name for noun in nouns if noun.plural}  # "a cat", but "bread"
    singular = torch.tensor([word in counted for word in vocabulary])
    plurals = {noun.plural for noun in nouns}
    either = singular | torch.tensor([word in plurals for word in vocabulary])
    wrong = {"a": vowel | ~singular, "an": ~vowel | ~singular}
    wrong |= dict.fromkeys(NO_NOUN_AFTER, singular) | dict.fromkeys(NO_NOUNS_AFTER, either)
    return {vocabulary.encode([word])[0]: mask for word, mask in wrong.items() if word in vocabulary}
