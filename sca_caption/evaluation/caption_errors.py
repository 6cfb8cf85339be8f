"""Main nouns of captions, and captions that contradict their references in gender, number or colour.

Captions are lists of lower-case words without punctuation, as `ptb_tokenize` returns them, after `join_compounds`.

Main noun: the last noun of the first noun phrase, found without a parser. Words are nouns unless a table below lists
them or they end in -ing, -ed or -ly.

1. Function words, numbers, and words in -ing and -ed end a noun phrase. Before its first noun they are skipped.
2. A verb after a noun ends the phrase: a word of VERBS with -s, one without -s after a plural ("cows graze", but "a night
   stand"), and any word in -s in a phrase that begins with "a" ("a man rides").
3. Adjectives and colours are skipped, but "orange" is a noun if none follows it.
4. A noun of PARTITIVES is skipped if one of PARTITIVE_ENDS follows: "a group of people" has the main noun person.

Two nouns are the same (`same_noun`) if their singulars are equal, if a set of SYNONYMS has both, or if both are words
for people and not one male and the other female: "man" is in references to a person or a surfer, but not to a woman.

Gender: wrong if the caption has words of a gender that no reference has, and a reference has words of the other gender.
This is the rule by which Hendricks et al. derive an image's gender from its captions ("Women also Snowboard", ECCV 2018,
arXiv 1803.09797). Pronouns count as well in references that have a word for people; others call animals "he".

Number: wrong if the caption has a number from two to ten that no reference has, at least two references have a number,
and all references with a number have the same one. "Couple", "pair" and "both" in a reference permit two.

Colour: wrong if the caption has a colour that no reference has, and a reference has a colour. Gray is grey. The fruit
orange counts as the colour unless it is plural.
"""

from collections.abc import Collection, Sequence

Words = Sequence[str]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MALE = _words("""
    man guy gentleman male boy father dad son brother groom husband businessman policeman fireman baseman batsman
    fisherman cowboy waiter
    """)
FEMALE = _words(
    "woman lady female girl mother mom daughter sister bride wife businesswoman policewoman waitress"
)
# People of either gender.
PEOPLE = _words("""
    person crowd couple family team child kid baby toddler infant teen teenager adult youth friend someone human
    individual player batter catcher umpire rider skier surfer skater skateboarder snowboarder cyclist biker
    bicyclist motorcyclist pedestrian worker officer soldier chef student tourist passenger spectator athlete
    boarder driver parent performer musician firefighter farmer racer swimmer jockey goalie
    """)
EVERYONE = MALE | FEMALE | PEOPLE
MALE_PRONOUNS = frozenset(("he", "his", "him", "himself"))
FEMALE_PRONOUNS = frozenset(("she", "her", "hers", "herself"))
SYNONYMS = tuple(
    frozenset(each.split())
    for each in (
        "bicycle bike",
        "motorcycle motorbike bike scooter moped",
        "airplane aeroplane plane jet aircraft airliner",
        "couch sofa loveseat",
        "car automobile vehicle suv sedan",
        "truck vehicle van",
        "boat ship sailboat",
        "tv television",
        "phone cellphone telephone smartphone",
        "computer laptop",
        "refrigerator fridge",
        "stove oven",
        "bathroom restroom washroom",
        "racket racquet",
        "dog puppy",
        "cat kitten",
        "cow cattle bull",
        "bird seagull pigeon duck goose parrot",
        "plate dish platter",
        "food meal dish",
        "donut doughnut",
        "teddybear toy",
        "street road",
        "field pasture meadow",
        "picture photo photograph image",
        "cup mug",
        "luggage suitcase bag",
    )
)
PARTITIVES = _words("""
    group couple bunch pair lot row line close-up closeup view shot picture photo photograph image piece slice front
    side top end edge corner part portion variety assortment collection selection array series set stack pile bundle
    herd flock type kind number
    """)
PARTITIVE_ENDS = frozenset(("of", "showing", "shows", "featuring"))
DETERMINERS_OF_ONE = frozenset(("a", "an", "each", "one"))
FUNCTION_WORDS = DETERMINERS_OF_ONE | _words(
    """
    the this that these those some several many few every all both another other any no more most various just also
    my your his its her our their there here it he she they we you i who which what where when while as if so than
    because though but and or not nor too
    of in on at with without by for from to into onto over under above below behind beside besides between beneath
    near next around across along against among amongst about after before during through toward towards inside
    outside up down off out atop upon beyond past like via amid within underneath alongside
    is are was were be been being am has have had do does did can could will would may might should must
    sat stood rode ran lay ate held threw took made wore went came hung slept taken shown
    lies seen stuck left lit well n't
    """
)
VERBS = _words("""
    sit stand ride walk run lie lay graze fly eat wait look hold pose play watch jump swing hit catch throw take make
    talk smile wear drive use get go come prepare lean rest sleep hang cross pull push carry perform lick stare peek
    try work travel move feed float reach ski surf share gather enjoy drink read cook cut fill follow land swim pass
    show seem appear crouch consist compete perch
    """)
ADJECTIVES = _words("""
    's red blue white black brown yellow green orange pink purple gray grey tan silver gold golden beige maroon dark
    bright colorful colourful large small big little tiny huge giant long short tall high low wide narrow thin
    thick fat old older elderly young younger new modern vintage antique fancy pretty beautiful cute nice happy busy
    empty full open clean messy wet dry hot cold fresh ripe lush grassy snowy sandy rocky muddy rainy cloudy sunny
    clear blurry wooden plastic asleep alone together outdoors outdoor indoors indoor away back very close same
    different single double lone public professional fluffy furry shiny round half
    """)
# Nouns in -ing, -ed and -ly, and words in -ing that begin names ("parking meter").
NOUNS_BY_EXCEPTION = _words("""
    parking living dining building ceiling painting wedding railing awning clothing crossing ring king wing string
    swing spring evening morning icing dressing pudding setting something bed shed sled seed weed fly family butterfly
    """)
PLURAL_TOO = _words("sheep fish cattle deer couple crowd")
NUMBERS = {word: word for word in ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")}
NUMBERS |= {str(value): word for value, word in enumerate(list(NUMBERS), 2)}
TWO = frozenset(("couple", "pair", "both"))
# Written as one word, so that a hot dog is no dog and a teddy bear is no bear.
COMPOUNDS = frozenset(
    ("hot dog", "teddy bear", "air plane", "surf board", "skate board", "bath room", "bed room", "rest room")
)
IRREGULAR = {
    "people": "person",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
    "knives": "knife",
    "leaves": "leaf",
    "shelves": "shelf",
    "wolves": "wolf",
    "calves": "calf",
    "buses": "bus",
    "skis": "ski",
    "taxis": "taxi",
}
IN_IE = _words("cookie tie pie brownie movie hoodie zombie smoothie necktie veggie")
IN_OE = _words("shoe toe canoe horseshoe")
UNCHANGED = _words("lens canvas christmas gas series")


def join_compounds(words: Words) -> list[str]:
    """The words with each pair of COMPOUNDS, in the singular or plural, as one word."""
    joined: list[str] = []
    for word in words:
        if joined and f"{joined[-1]} {singular(word)}" in COMPOUNDS:
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def singular(word: str) -> str:
    """The singular of a noun by its spelling: "men" -> "man", "benches" -> "bench", "ponies" -> "pony"."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("men"):
        return f"{word[:-3]}man"
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")) or word in UNCHANGED:
        return word
    stem = word[:-1]
    if stem.endswith("ie") and stem not in IN_IE:
        return f"{stem[:-2]}y"
    if stem.endswith(("sse", "she", "che", "xe", "zze")) or (stem.endswith("oe") and stem not in IN_OE):
        return stem[:-1]
    return stem


def main_noun(words: Words) -> str | None:
    """The main noun of a caption in the singular, or None if there is none."""
    noun, before, determiner = "", "", ""
    for word in [*words, ""]:
        if word in ADJECTIVES:
            before = word
            continue
        if word and (before == "'s" or not _ends_phrase(word, noun, determiner)):
            noun = before = word
            continue
        if not noun and before == "orange" and word not in ("and", "or"):
            noun = before
        if noun and not (singular(noun) in PARTITIVES and word in PARTITIVE_ENDS):
            return singular(noun)
        if word in FUNCTION_WORDS or word in NUMBERS:
            determiner = word
        noun, before = "", word
    return None


def _ends_phrase(word: str, noun: str, determiner: str) -> bool:
    """Whether a word that is no adjective ends the phrase after `determiner` whose last noun is `noun` ("" if none)."""
    if word in FUNCTION_WORDS or word in NUMBERS:
        return True
    if word.endswith(("ing", "ed", "ly")) and word not in NOUNS_BY_EXCEPTION:
        return True
    if not noun:
        return False
    plural = singular(noun) != noun
    if word in VERBS:
        return plural or noun in PLURAL_TOO or determiner in NUMBERS
    stem = singular(word)
    return stem != word and (stem in VERBS or (determiner in DETERMINERS_OF_ONE and not plural))


def same_noun(one: str, other: str) -> bool:
    """Whether two nouns in the singular are the same noun, synonyms, or people of genders that do not differ."""
    if one == other or any(one in each and other in each for each in SYNONYMS):
        return True
    different = (one in MALE and other in FEMALE) or (one in FEMALE and other in MALE)
    return one in EVERYONE and other in EVERYONE and not different


def names_main_noun(caption: Words, references: Sequence[Words]) -> bool:
    """Whether a word of a reference is the same noun as the caption's main noun."""
    noun = main_noun(caption)
    words = {singular(word) for reference in references for word in reference}
    return noun is not None and any(same_noun(noun, word) for word in words)


def wrong_gender(caption: Words, references: Sequence[Words]) -> bool:
    """Whether the caption has words of one gender and the references have only words of the other."""
    male, female = (any(singular(word) in gender for word in caption) for gender in (MALE, FEMALE))
    theirs: set[str] = set()
    for reference in references:
        words = {singular(word) for word in reference}
        if not words.isdisjoint(EVERYONE):
            theirs |= words.union(reference)
    any_male = not theirs.isdisjoint(MALE | MALE_PRONOUNS)
    any_female = not theirs.isdisjoint(FEMALE | FEMALE_PRONOUNS)
    return (male and any_female and not any_male) or (female and any_male and not any_female)


def wrong_number(caption: Words, references: Sequence[Words]) -> bool:
    """Whether the caption has a number that differs from the one on which at least two references agree."""
    several = [{NUMBERS[word] for word in reference if word in NUMBERS} for reference in references]
    counted = [numbers for numbers in several if numbers]
    if len(counted) < 2 or len(_union(counted)) > 1:
        return False
    permitted = _union(counted) | ({"two"} if TWO & _union(references) else set())
    return not {NUMBERS[word] for word in caption if word in NUMBERS} <= permitted


def wrong_colour(caption: Words, references: Sequence[Words], colours: Collection[str]) -> bool:
    """Whether the caption has one of the colours that no reference has, and a reference has a colour."""
    known = {colour: "grey" if colour == "gray" else colour for colour in colours}
    theirs = {known[word] for word in _union(references) if word in known}
    return bool(theirs) and not {known[word] for word in caption if word in known} <= theirs


def _union(several: Sequence[Collection[str]]) -> set[str]:
    return {word for words in several for word in words}
