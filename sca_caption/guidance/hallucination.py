"""Hallucination mask: people, dogs and colours that are not in the image stay out of its caption.

A captioner trained on photographs of people and dogs mentions them for a kitchen too, and after "in a" comes a colour:
words follow from the previous words more than from the image (object hallucination, Rohrbach et al. 2018, arXiv
1809.02156). A logistic regression on image features predicts the fraction of annotators that would mention people,
dogs and each colour. If too few would mention people and dogs, the decoder must not mention them, nor any colour that
too few would name. Captions of photographs of people or dogs, which the captioner knows best, are left alone. It must
be fitted on data that includes photographs without people and dogs.

Shapes: B images, C channels, W words, K subjects, N images to fit to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.guidance.guide import ForcedWords, Guide
from sca_caption.guidance.image_features import PooledFeaturesGuide, center_and_normalize
from sca_caption.guidance.masking import without_forced
from sca_caption.guidance.object_nouns import read_nouns
from sca_caption.vocab import Vocabulary

MIN_IMAGES = 20  # images that mention a subject, and that do not, which are needed to fit it
PEOPLE = """
    adult adults artist artists athlete athletes audience babies baby ballerinas ballplayer barber bartender baseman
    batsman batter bicycler bicyclist bicyclists biker bikers boarder boy boys bride brides bridesmaids brother
    cameraman cheerleader cheerleaders chef child children climber climbers clown clowns cop couple couples cowboy
    cowboys cowgirl crowd crowds customer customers cyclist cyclists dad dancer dancers daughter defender defenders
    diver divers drummer family father female females fencers firefighter firefighters fireman firemen fisherman
    footballer footballers friend friends gentleman girl girls goalie golfer groom groomsmen guest guests guitarist
    guy guys gymnast hiker hikers individual individuals infant instructor jockey jockeys jogger kayaker kayakers
    kid kiddie kids ladies lady male males man men mom mother motorcyclist motorcyclists mountaineer musician
    musicians newborn nurse officer officers onlookers opponent opponents parent parents passenger passengers
    pedestrian pedestrians people performer performers person persons photographer photographers pilot pilots player
    players policeman policemen priest quarterback racer racers referee rider riders rollerblader rollerbladers
    runner runners sailor singer sister skateboarder skateboarders skater skaters skier skiers skiiers snowboarder
    snowboarders soldier soldiers someone son spectators sportsman student students surfboarder surfer surfers
    swimmer swimmers teacher team teammate teammates teams teen teenager teenagers teens toddler toddlers tourist
    tourists trainer vendor waiter wakeboarder waterskier windsurfer woman women worker workers wrestler wrestlers
    youth
"""
COLOURS = [
    "red",
    "blue",
    "white",
    "black",
    "brown",
    "yellow",
    "green",
    "orange",
    "pink",
    "purple",
    "gray",
    "grey",
    "tan",
]


@dataclass(frozen=True)
class Subject:
    """A subject is absent if the fraction of annotators that use one of `words` is below `threshold`.

    primary: if one primary subject is present, nothing is banned. The thresholds were chosen on Flickr8k's validation
    images and 109 photographs of MSCOCO.
    """

    words: frozenset[str]
    threshold: float
    primary: bool = False


SUBJECTS = {
    "people": Subject(frozenset(PEOPLE.split()), 0.3, primary=True),
    "dogs": Subject(
        frozenset(next(noun.forms for noun in read_nouns() if noun.name == "dog")), 0.1, primary=True
    ),
    **{colour: Subject(frozenset({colour}), 0.1) for colour in COLOURS},
}


class PresenceClassifier(PooledFeaturesGuide):
    """Predicts the fraction of an image's references that mention each subject, (B, K). Made by `fit_presence`.

    names: keys of SUBJECTS.
    """

    def __init__(self, channels: Sequence[int], names: Sequence[str]):
        super().__init__(channels)
        self.names = tuple(names)
        self.classifier = nn.Linear(sum(channels), len(names)).requires_grad_(False)

    def settings(self) -> dict[str, Any]:
        return {"channels": list(self.channels), "names": list(self.names)}

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], vocabulary_size: int
    ) -> Self:
        earlier = {"centre": "center"}
        weights = {earlier.get(name, name): value for name, value in tensors.items()}
        return super().restore(settings, weights, vocabulary_size)

    def forward(self, maps: Tensor, features: Tensor | None = None) -> Tensor:
        return self.classifier(self.inputs(maps, features)).sigmoid()


@dataclass(frozen=True)
class BanRule:
    """A subject, its words as ids."""

    words: tuple[int, ...]
    threshold: float
    primary: bool


class HallucinationMask(Guide):
    """Excludes the words of absent subjects from captions of images without a primary subject."""

    name = "presence"
    prediction = "mention_rates"
    trained_type = PresenceClassifier
    about_objects = True

    def __init__(self, rules: Sequence[BanRule]):
        self.rules = list(rules)

    @classmethod
    def from_trained(cls, trained: PresenceClassifier, vocabulary: Vocabulary) -> Self:
        subjects = [SUBJECTS[name] for name in trained.names]
        words = [
            vocabulary.encode(sorted(word for word in each.words if word in vocabulary)) for each in subjects
        ]
        return cls(
            [
                BanRule(tuple(ids), each.threshold, each.primary)
                for ids, each in zip(words, subjects, strict=True)
            ]
        )

    @classmethod
    def from_json(cls, description: Mapping[str, Any], vocabulary: Vocabulary) -> Self:
        rules = description["rules"]
        return cls([BanRule(tuple(each["words"]), each["threshold"], each["primary"]) for each in rules])

    def to_json(self) -> dict[str, Any]:
        return {"rules": [asdict(rule) for rule in self.rules]}

    def banned_words(self, predicted: Tensor, forced: ForcedWords, words: int) -> Tensor:
        """bool (B, words) from mention rates (B, K); forced words are never banned.

        If a primary subject is present, nothing is masked; otherwise the words of every absent subject are.
        """
        banned = torch.zeros(len(predicted), words, dtype=torch.bool, device=predicted.device)
        absent = predicted < predicted.new_tensor([rule.threshold for rule in self.rules])  # (B, K)
        no_primary = absent[:, [rule.primary for rule in self.rules]].all(1)
        for absent_here, rule in zip(absent.unbind(1), self.rules, strict=True):
            banned[:, list(rule.words)] |= (absent_here & no_primary)[:, None]
        return without_forced(banned, forced)


def mention_rate(references: Sequence[Sequence[str]], words: frozenset[str]) -> float:
    """Fraction of the references (lists of words) that contain one of the words."""
    return sum(not words.isdisjoint(reference) for reference in references) / len(references)


@torch.enable_grad()
def fit_presence(
    features: Tensor, references: Sequence[Sequence[Sequence[str]]], ridge: float, channels: Sequence[int]
) -> PresenceClassifier | None:
    """Logistic regression of the mention rates of all subjects.

    features: (N, C), `signed_sqrt_pool` of the images. references: of each image, lists of words. ridge: weight of the
    sum of squared weights beside the mean cross-entropy per image; the features have unit length after centring.
    channels: how many features belong to each network.

    Subjects that fewer than MIN_IMAGES images mention, or do not mention, are left out; None if all primary ones are.
    """
    rates = {
        name: torch.tensor([mention_rate(several, each.words) for several in references])
        for name, each in SUBJECTS.items()
    }
    rates = {
        name: each for name, each in rates.items() if MIN_IMAGES <= (each > 0).sum() <= len(each) - MIN_IMAGES
    }
    if not any(SUBJECTS[name].primary for name in rates):
        return None
    fitted = PresenceClassifier(channels, tuple(rates))
    fitted.center.copy_(features.mean(0))
    inputs = center_and_normalize(features, fitted.center, channels).double()
    targets = torch.stack([*rates.values()], 1).double()
    weights = torch.zeros(inputs.shape[1], len(rates), dtype=torch.double, requires_grad=True)
    bias = targets.mean(0).logit().requires_grad_()
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        errors = F.binary_cross_entropy_with_logits(inputs @ weights + bias, targets, reduction="none")
        value = errors.mean(0).sum() + ridge * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    fitted.classifier.weight.copy_(weights.detach().T)
    fitted.classifier.bias.copy_(bias.detach())
    return fitted
