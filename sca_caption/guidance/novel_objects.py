"""Captions that name what ImageNet's classifier sees, also where the captioner has no word for it.

A noun that is probable (see `nouns`, `objects`) and that the caption leaves out is put into it by a second search, which
must mention it (see `constraints`), unless the captioner finds the result too unlikely. A word that the vocabulary lacks
stands on the vectors of the most similar nouns that it has, so that it comes where they would (Anderson et al. 2017,
arXiv 1612.00576). The new words are open only to images that must mention them.
"""

import copy
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.decoding import beam_search, stepper
from sca_caption.decoding.lexical_constraints import MOST_GROUPS
from sca_caption.decoding.rules import CONJUNCTIONS, PREPOSITIONS, VERBS
from sca_caption.guidance.consensus import Ranking
from sca_caption.guidance.masking import Speaker
from sca_caption.guidance.object_classifier import Objects
from sca_caption.guidance.object_nouns import Noun, read_nouns
from sca_caption.models.sca_cnn import SCACNN, State
from sca_caption.vocab import EOS, SPECIALS, Vocabulary

SIMILAR = 3  # nouns whose vectors make those of a new word
NO_NOUN_AFTER = ("to", "of", "people")  # in the singular, bare: "a group of tray"
NO_NOUNS_AFTER = ("is", "are")  # in the plural neither: "people are computers in the air"
AFTER_NOUN = frozenset(f"{PREPOSITIONS} {CONJUNCTIONS} {VERBS}".split())  # and -ing; not "a laptop bench"
VOWEL = re.compile(r"[aeio]|u(?!ni)|hour")  # has "an" before it


@dataclass(frozen=True)
class Limits:
    """From which probability on a noun is said, and at what price.

    Chosen on Flickr8k's validation images and the even half of Caltech-101's classes (see benchmarks/naming.py).
    """

    threshold: float = 0.2  # probability from which on a noun is tried
    room: float = 0.8  # it may lower the caption's score by room + room_if_sure * probability
    room_if_sure: float = 2.2
    share: float = 0.5  # of a general noun's probability that a special one needs to be said in its place
    absent: float = 0.1  # probability below which other nouns of the kind are not said


@dataclass
class Lexicon:
    """The nouns that a captioner can be made to mention, and the second search that does it.

    It knows of the captioner only a step whose logits are those of all words of `vocabulary`, the new ones too, and
    states whose `image` says which image a row is about.
    """

    nouns: tuple[Noun, ...]
    vocabulary: Vocabulary  # the captioner's and the new words after it
    known: int  # how many of them the captioner itself has
    groups: list[list[int]]  # the ids of each noun's words
    agreement: dict[
        int, Tensor
    ]  # after this word, which words (W,) do not follow, of those that must be mentioned
    no_compound: Tensor  # (W,) which words do not follow one that must be mentioned
    limits: Limits = field(default_factory=Limits)

    def noun_of(self, probabilities: Tensor) -> int:
        """The likeliest noun of one image, (nouns,); or a special one (rooster for bird) with most of its probability."""
        best = int(probabilities.argmax())
        inside = [
            column
            for column, noun in enumerate(self.nouns)
            if set(noun.classes) < set(self.nouns[best].classes)
            and probabilities[column] >= self.limits.share * probabilities[best]
        ]
        return min(inside, key=lambda column: len(self.nouns[column].classes), default=best)

    def mention(
        self,
        model: stepper.Stepper,
        found: list[list[stepper.Hypothesis]],
        state: stepper.State,
        probabilities: Tensor,
        mentions: Sequence[Sequence[Collection[int]]],
        ranking: Ranking | None = None,
        silent: Tensor | None = None,
        **search,
    ) -> list[list[stepper.Hypothesis]]:
        """What a search from `state` has found, with captions in place that mention a noun where one was left out.

        model: says all words; probabilities: (B, nouns); mentions, search: what `decode.beam_search` was given; ranking:
        what `found` was ranked by after that; silent: known words that it kept from, bool (B, known).
        """
        surest = probabilities.amax(1).tolist()
        nouns = {}
        for row, hypotheses in enumerate(found):
            if surest[row] >= self.limits.threshold and len(mentions[row]) < MOST_GROUPS:
                noun = self.noun_of(probabilities[row])
                if not self.nouns[noun].is_in(self.vocabulary.decode(hypotheses[0].tokens)):
                    nouns[row] = noun
        if not nouns:
            return found
        closed = torch.zeros(len(found), len(self.vocabulary), dtype=torch.bool)
        closed[:, self.known :] = True
        if silent is not None:
            closed[:, : self.known] = silent
        wanted, groups = torch.zeros_like(closed), []
        for row, noun in nouns.items():
            groups.append([*mentions[row], self.groups[noun]])
            closed[row, self._others(noun, probabilities[row])] = True
            closed[row, [word for group in groups[-1] for word in group]] = False
            wanted[row, self.groups[noun]] = True
        closed, wanted = closed.to(state.device), wanted.to(state.device)
        speaker = Speaker(model, closed, wanted, self.agreement, self.no_compound)
        rows = torch.tensor(list(nouns), device=state.device)
        better = beam_search.beam_search(speaker, state.select(rows), mentions=groups, **search)
        found, likelihood = list(found), ranking.likelihood if ranking else attrgetter("score")
        for (row, noun), group, hypotheses in zip(nouns.items(), groups, better, strict=True):
            hypotheses = ranking(row, hypotheses, group) if ranking else hypotheses
            best, room = hypotheses[0], self.limits.room + self.limits.room_if_sure * surest[row]
            least = likelihood(found[row][0]) - room
            if likelihood(best) >= least and not set(self.groups[noun]).isdisjoint(best.tokens):
                found[row] = hypotheses
        return found

    def _others(self, noun: int, probabilities: Tensor) -> list[int]:
        """Known words for other things of the noun's kind that are not in the image."""
        said, words = self.nouns[noun], []
        for other, probability in zip(self.nouns, probabilities.tolist(), strict=True):
            alike = said.kind and other.kind == said.kind and set(said.classes).isdisjoint(other.classes)
            if alike and probability < self.limits.absent:
                words += [form for form in other.forms if form in self.vocabulary]
        return self.vocabulary.encode(word for word in words if word not in said.forms)


class Namer(Lexicon):
    """A captioner that knows more words, and the nouns that it can be made to mention."""

    def __init__(
        self,
        model: SCACNN,
        vocabulary: Vocabulary,
        objects: Objects,
        nouns: Sequence[Noun] | None = None,
    ):
        self.objects, self.nouns = objects, tuple(nouns or read_nouns())
        self.known = len(vocabulary)
        device = model.word.weight.device
        self.members = torch.zeros(objects.classifier.out_features, len(self.nouns), device=device)
        for column, noun in enumerate(self.nouns):
            self.members[list(noun.classes), column] = 1
        new = [noun.name for noun in self.nouns if noun.name not in vocabulary]
        self.model = with_words(model, self._donors(vocabulary, new))
        words = Vocabulary([*vocabulary.words[len(SPECIALS) :], *new])
        groups = [
            words.encode(form for form in (noun.name, noun.plural) if form in words) for noun in self.nouns
        ]
        agreement = {after: mask.to(device) for after, mask in agreement_of(self.nouns, words).items()}
        ends = [word in AFTER_NOUN or word.endswith("ing") for word in words]
        ends[EOS] = True
        no_compound = ~torch.tensor(ends, device=device)
        super().__init__(self.nouns, words, self.known, groups, agreement, no_compound)

    def _donors(self, vocabulary: Vocabulary, new: Sequence[str]) -> Tensor:
        """Which known words make the vectors of each new one: shares (new, known), rows of sum 1, or 0 without any."""
        weights = self.objects.classifier.weight - self.objects.classifier.weight.mean(0)
        vectors = F.normalize(self.members.T @ weights, dim=1)  # (nouns, 1280)
        shares = torch.zeros(len(new), self.known, device=vectors.device)
        words = [noun.name for noun in self.nouns]
        donors = [column for column, word in enumerate(words) if word in vocabulary]
        ids = torch.tensor(vocabulary.encode(words[column] for column in donors), device=vectors.device)
        for row, word in enumerate(new):
            nearest = (vectors[donors] @ vectors[words.index(word)]).topk(min(SIMILAR, len(donors))).indices
            shares[row, ids[nearest]] = 1 / max(1, len(nearest))
        return shares

    def probabilities(self, seen: Tensor) -> Tensor:
        """What `objects` answers (B, C) -> probability of each noun, (B, nouns)."""
        return self.objects.classes(seen) @ self.members

    def improve(
        self,
        found: list[list[stepper.Hypothesis]],
        state: State,
        seen: Tensor,
        mentions: Sequence[Sequence[Collection[int]]],
        ranking: Ranking | None = None,
        silent: Tensor | None = None,
        **search,
    ) -> list[list[stepper.Hypothesis]]:
        """`mention` what `objects` saw."""
        return self.mention(
            self.model, found, state, self.probabilities(seen), mentions, ranking, silent, **search
        )


def agreement_of(nouns: Sequence[Noun], vocabulary: Vocabulary) -> dict[int, Tensor]:
    """After "a", "an", "is" and others: which words (W,) do not follow, of those that must be mentioned."""
    vowel = torch.tensor([VOWEL.match(word) is not None for word in vocabulary])
    counted = {noun.name for noun in nouns if noun.plural}  # "a cat", but "bread"
    single = torch.tensor([word in counted for word in vocabulary])
    plurals = {noun.plural for noun in nouns}
    either = single | torch.tensor([word in plurals for word in vocabulary])
    wrong = {"a": vowel | ~single, "an": ~vowel | ~single}
    wrong |= dict.fromkeys(NO_NOUN_AFTER, single) | dict.fromkeys(NO_NOUNS_AFTER, either)
    return {vocabulary.encode([word])[0]: mask for word, mask in wrong.items() if word in vocabulary}


def with_words(model: SCACNN, shares: Tensor) -> SCACNN:
    """The captioner with words more, each the mean of known ones by `shares` (new, known); all else is shared."""
    other = copy.copy(model)
    other._modules = dict(model._modules)
    known, size = model.embedding.weight.shape
    other.embedding = nn.Embedding(
        known + len(shares), size, _weight=_extended(model.embedding.weight, shares)
    )
    other.word = nn.Linear(size, known + len(shares), device="meta")
    other.word.weight = nn.Parameter(_extended(model.word.weight, shares))
    other.word.bias = nn.Parameter(_extended(model.word.bias, shares))
    return other


def _extended(values: Tensor, shares: Tensor) -> Tensor:
    return torch.cat([values, shares @ values]).detach()
