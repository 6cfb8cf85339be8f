"""Kept out of captions of other things: people, dogs, and colours that are hardly there.

A captioner that learnt from photographs of people and dogs speaks of them before a kitchen too, and after "in a" comes
a colour, whichever: words follow from the words before them more than from what is seen (object hallucination: Rohrbach
et al. 2018, arXiv 1809.02156). From an image's features, a logistic regression foretells which share of its references
speaks of people, of dogs and of each colour. Where too few would speak of people or dogs, both are closed to the search,
and every colour that too few would name. It learns that from photographs without people and dogs, so they must be among
those that it is fitted to. Other photographs are what the captioner knows best, and their captions stay as they are.

Shapes: B images, C channels, W words, K subjects, N images to learn from.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.guidance.consensus import centred, powers
from sca_caption.guidance.object_nouns import read_nouns
from sca_caption.vocab import Vocabulary

FEWEST = 20  # images with a subject, and without it, from which on it can be learnt
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
COLOURS = (
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
)


@dataclass(frozen=True)
class Subject:
    """Where fewer than the share `least` would use one of `words`, it is hardly there; a `main` one decides for all.

    Shares were chosen on Flickr8k's validation images and 109 of MSCOCO.
    """

    words: frozenset[str]
    least: float
    main: bool = False


SUBJECTS = {
    "people": Subject(frozenset(PEOPLE.split()), 0.3, main=True),
    "dogs": Subject(
        frozenset(next(noun.forms for noun in read_nouns() if noun.name == "dog")), 0.1, main=True
    ),
    **{colour: Subject(frozenset({colour}), 0.1) for colour in COLOURS},
}


class Subjects(nn.Module):
    """Which share of an image's references speaks of each of the subjects `names`. `fitted` makes it."""

    def __init__(self, channels: Sequence[int], names: Sequence[str]):
        """channels: of the captioner's map, and, where it reads that too, of what ImageNet's network saw."""
        super().__init__()
        self.channels, self.names = tuple(channels), tuple(names)
        self.centre = nn.Parameter(torch.zeros(sum(channels)), requires_grad=False)
        self.classifier = nn.Linear(sum(channels), len(names)).requires_grad_(False)

    @property
    def reads_objects(self) -> bool:
        return len(self.channels) > 1

    def forward(self, maps: Tensor, seen: Tensor | None = None) -> Tensor:
        """As `consensus.Consensus` takes them: maps (B, C, H, W), seen (B, C') -> shares from 0 to 1, (B, K)."""
        features = powers(maps, seen if self.reads_objects else None)
        return self.classifier(centred(features, self.centre, self.channels)).sigmoid()


@dataclass(frozen=True)
class Rule:
    """A subject with its words as ids."""

    words: tuple[int, ...]
    least: float
    main: bool


def rules_of(subjects: Subjects, vocabulary: Vocabulary) -> list[Rule]:
    """Of each of the subjects, in their order."""
    known = [SUBJECTS[name] for name in subjects.names]
    words = [vocabulary.encode(sorted(word for word in each.words if word in vocabulary)) for each in known]
    return [Rule(tuple(ids), each.least, each.main) for ids, each in zip(words, known, strict=True)]


def closed(
    shares: Tensor, rules: Sequence[Rule], words: int, mentions: Sequence[Sequence[Collection[int]]]
) -> Tensor:
    """Which words are not said of each image: bool (B, W), for shares (B, K). Those of its `mentions` may be.

    Where one of the main subjects is, none; elsewhere those of all that are not.
    """
    found = torch.zeros(len(shares), words, dtype=torch.bool, device=shares.device)
    lacking = shares < shares.new_tensor([rule.least for rule in rules])  # (B, K)
    others = lacking[:, [rule.main for rule in rules]].all(1)
    for absent, rule in zip(lacking.unbind(1), rules, strict=True):
        found[:, list(rule.words)] |= (absent & others)[:, None]
    for row, groups in zip(found, mentions, strict=True):
        row[[word for group in groups for word in group]] = False
    return found


def share_of(references: Sequence[Sequence[str]], words: frozenset[str]) -> float:
    """Of the references, lists of words, that have one of the words."""
    return sum(not words.isdisjoint(said) for said in references) / len(references)


@torch.enable_grad()
def fitted(
    features: Tensor, references: Sequence[Sequence[Sequence[str]]], ridge: float, channels: Sequence[int]
) -> Subjects | None:
    """Logistic regression of the shares of references, lists of words, that speak of each subject.

    features: (N, C), `consensus.powers` of the images; ridge: what the sum of squared weights counts beside the mean
    cross-entropy of an image, the features having length 1 after centring. Subjects that fewer than FEWEST of the images
    have, or lack, are left out; None where all the main ones are.
    """
    shares = {
        name: torch.tensor([share_of(several, each.words) for several in references])
        for name, each in SUBJECTS.items()
    }
    shares = {name: each for name, each in shares.items() if FEWEST <= (each > 0).sum() <= len(each) - FEWEST}
    if not any(SUBJECTS[name].main for name in shares):
        return None
    found = Subjects(channels, tuple(shares))
    found.centre.copy_(features.mean(0))
    inputs, wanted = (
        centred(features, found.centre, channels).double(),
        torch.stack([*shares.values()], 1).double(),
    )
    weights = torch.zeros(inputs.shape[1], len(shares), dtype=torch.double, requires_grad=True)
    bias = wanted.mean(0).logit().requires_grad_()
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        apart = F.binary_cross_entropy_with_logits(inputs @ weights + bias, wanted, reduction="none")
        value = apart.mean(0).sum() + ridge * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    found.classifier.weight.copy_(weights.detach().T)
    found.classifier.bias.copy_(bias.detach())
    return found
