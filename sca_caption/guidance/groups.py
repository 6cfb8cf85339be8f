"""Groups of words of a vocabulary that guides exclude together: for people, each animal, each colour, and each
gender."""

from functools import cache
from typing import NamedTuple

from sca_caption.evaluation import caption_errors as errors
from sca_caption.vocab import Vocabulary

_PEOPLE = """
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
_DOGS = """
    dog dogs puppy puppies pup hound greyhound greyhounds dalmatian poodle poodles terrier terriers retriever
    collie shepherd beagle husky dachshund boxer doberman pitbull labrador lab bulldog pug chihuahua
    rottweiler
"""
PEOPLE, DOGS = frozenset(_PEOPLE.split()), frozenset(_DOGS.split())
# The words of each other animal, its name first. A word may belong to several, as a parrot is a bird.
ANIMALS = """
    goldfish, shark sharks, stingray stingrays ray rays, fish fishes, rooster roosters cock,
    chicken chickens hen hens rooster, ostrich ostriches, eagle eagles, vulture vultures, owl owls,
    peacock peacocks, parrot parrots macaw cockatoo, hummingbird hummingbirds, toucan toucans,
    duck ducks mallard ducklings, goose geese, swan swans, stork storks, flamingo flamingos flamingoes,
    heron herons egret egrets, pelican pelicans, penguin penguins,
    bird birds seagull seagulls pigeon pigeons parrot rooster chicken duck ducks goose geese swan swans owl eagle
    flamingo flamingos heron crane pelican penguin ostrich peacock,
    salamander salamanders newt, frog frogs toad, turtle turtles tortoise,
    lizard lizards iguana chameleon gecko, crocodile crocodiles alligator alligators, dinosaur dinosaurs,
    snake snakes python cobra, fossil fossils, scorpion scorpions, spider spiders tarantula, tick ticks bug,
    centipede centipedes, elephant elephants, platypus platypuses, kangaroo kangaroos wallaby, koala koalas,
    jellyfish, coral corals reef, shell shells seashell seashells, snail snails, slug slugs, crab crabs,
    lobster lobsters crayfish, whale whales orca, seal seals walrus, hyena hyenas, fox foxes,
    cat cats kitten kittens kitty tabby, cougar cougars puma, lynx lynxes bobcat,
    leopard leopards jaguar cheetah, lion lions lioness, tiger tigers, cheetah cheetahs leopard, bear bears,
    meerkat meerkats mongoose, ladybug ladybugs, beetle beetles bug bugs ladybug, bee bees, ant ants,
    grasshopper grasshoppers cricket crickets, cockroach cockroaches, mantis mantises, dragonfly dragonflies,
    butterfly butterflies moth, insect insects bug bugs beetle bee ant ants grasshopper dragonfly butterfly,
    starfish, rabbit rabbits bunny bunnies hare, hamster hamsters, porcupine porcupines hedgehog,
    squirrel squirrels chipmunk, beaver beavers, horse horses pony ponies, zebra zebras, pig pigs boar hog,
    hippopotamus hippopotamuses hippo hippos, cow cows bull bulls ox oxen cattle buffalo, bison bisons buffalo,
    sheep ram rams lamb lambs, goat goats, antelope antelopes deer gazelle, camel camels, llama llamas alpaca,
    ferret ferrets weasel, otter otters, skunk skunks, badger badgers, armadillo armadillos, sloth sloths,
    gorilla gorillas, monkey monkeys ape apes gorilla chimpanzee orangutan baboon, lemur lemurs, panda pandas
"""
# Common animals that the list above, made for ImageNet's classes, does not have.
OTHER_ANIMALS = "giraffe giraffes, donkey donkeys mule mules, moose"
COLOURS = (
    "red", "blue", "white", "black", "brown", "yellow", "green", "orange", "pink", "purple", "gray", "grey", "tan",
)  # fmt: skip
# Words for one gender, beside those that `evaluation.caption_errors` counts. Kings and queens are sizes of beds.
MALE = errors.MALE | {"boyfriend", "cameraman", "grandfather", "groomsman", "salesman", "sportsman", "uncle"}
FEMALE = errors.FEMALE | {
    "actress",
    "ballerina",
    "bridesmaid",
    "cowgirl",
    "girlfriend",
    "grandmother",
    "aunt",
}


class Genders(NamedTuple):
    """Ids of the words for men and boys, of those for women and girls, and of all other words for people."""

    male: tuple[int, ...]
    female: tuple[int, ...]
    neutral: tuple[int, ...]


@cache
def animals() -> dict[str, frozenset[str]]:
    """The words of each of ANIMALS by its name."""
    return words_by_name(ANIMALS)


@cache
def animals_and_colours() -> dict[str, frozenset[str]]:
    """The words of every group but people by the group's name: "dogs", other animals by their name, colours."""
    colours = {colour: frozenset((colour,)) for colour in COLOURS}
    return {"dogs": DOGS, **animals(), **words_by_name(OTHER_ANIMALS), **colours}


def words_by_name(listed: str) -> dict[str, frozenset[str]]:
    """ "cat cats kitten, moose" -> {"cat": {"cat", "cats", "kitten"}, "moose": {"moose"}}."""
    groups = [group.split() for group in listed.split(",")]
    return {name: frozenset((name, *others)) for name, *others in groups}


def names_people(word: str) -> bool:
    """Whether the word is a noun for people, in the singular or plural."""
    noun = errors.singular(word)
    return word in PEOPLE or noun in errors.EVERYONE or noun in MALE or noun in FEMALE


def mention_groups(vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
    """Ids of the vocabulary's words of "people", "dogs", other animals and colours; groups without words are left
    out."""
    groups = {name: words & {*vocabulary} for name, words in animals_and_colours().items()}
    groups = {"people": frozenset(filter(names_people, vocabulary)), **groups}
    return {name: tuple(vocabulary.encode(sorted(words))) for name, words in groups.items() if words}


def genders(vocabulary: Vocabulary) -> Genders:
    """The vocabulary's words for people by gender. The pronouns he and she are among those of a gender."""
    male = [each for each in vocabulary if errors.singular(each) in MALE or each in errors.MALE_PRONOUNS]
    female = [
        each for each in vocabulary if errors.singular(each) in FEMALE or each in errors.FEMALE_PRONOUNS
    ]
    neutral = [each for each in vocabulary if names_people(each) and each not in (*male, *female)]
    return Genders(*(tuple(vocabulary.encode(words)) for words in (male, female, neutral)))


def gendered_words(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Ids of the words that neutral captions never contain: those for one gender."""
    male, female, _ = genders(vocabulary)
    return male + female
