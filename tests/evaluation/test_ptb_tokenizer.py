"""ptb_tokenize against Stanford's PTBTokenizer: its stored output for hard captions, and with Java for random ones."""

import random
import subprocess

import pytest

from sca_caption.evaluation.meteor_spice import MetricUnavailable, find_java, pycocoevalcap_folder
from sca_caption.evaluation.ptb_tokenizer import PUNCTUATION, ptb_tokenize

# (caption, the output of the Java program joined by spaces)
HARD = [
    ("A man in a red shirt is climbing a rock .", "a man in a red shirt is climbing a rock"),
    ("A dog runs, jumps; and barks!", "a dog runs jumps and barks"),
    (
        "The dog's owner isn't here; they're at the dogs' park and won't return",
        "the dog 's owner is n't here they 're at the dogs park and wo n't return",
    ),
    (
        "I'll say we've been, she'd go, I'm here, he's there",
        "i 'll say we 've been she 'd go i 'm here he 's there",
    ),
    ("DON'T YOU DARE , IT'S MINE", "do n't you dare it 's mine"),
    (
        "a man cannot see , we're gonna go , they wanna play , gimme that , gotta run , lemme in",
        "a man can not see we 're gon na go they wan na play gim me that got ta run lem me in",
    ),
    ("'Tis the season and 'twas the night", "'t is the season and 't was the night"),
    ("y'all c'mon , it's 5 o'clock", "y' all c'mon it 's 5 o'clock"),
    (
        "rock 'n' roll , get 'em , 'cause of ol' Jack's somethin' else",
        "rock 'n' roll get 'em 'cause of ol' jack 's somethin' else",
    ),
    ("the O'Neil family's d'Artagnan costume", "the o'neil family 's d'artagnan costume"),
    ("a sign reading \"No Parking\" and 'Keep Out'", "a sign reading no parking and keep out"),
    ("“curly quotes” and ‘single ones’ and it’s can’t", "curly quotes and single ones and it 's ca n't"),
    (
        "a woman (in blue) holds [something] in {braces}",
        "a woman -lrb- in blue -rrb- holds -lsb- something -rsb- in -lcb- braces -rcb-",
    ),
    (
        "a black-and-white t-shirt , snow-covered hill , 10-year-old , mid-air",
        "a black-and-white t-shirt snow-covered hill 10-year-old mid-air",
    ),
    (
        "a man -- with a hat --- smiles - broadly ---- but ----- why",
        "a man with a hat smiles broadly but ----- why",
    ),
    ("a pause ... then .... more . . . and … end", "a pause then more and end"),
    (
        "number 5 , 1,000 people , 3.5 miles , 50% off , #23 , No. 7 , -5 degrees",
        "number 5 1,000 people 3.5 miles 50 % off # 23 no. 7 -5 degrees",
    ),
    ("1/2 of it , 3/4 , 2 1/2 hours , ½ cup , 24/7", "1/2 of it 3/4 2\xa01/2 hours 1/2 cup 24/7"),
    (
        "at 10:30 am , on 12/25/2010 , in 1990's and the '90s and '50",
        "at 10:30 am on 12/25/2010 in 1990 's and the '90s and '50",
    ),
    ("5'10\" tall , 6ft , 100m dash , 1st and 2nd", "5 10 tall 6ft 100m dash 1st and 2nd"),
    ("call 555-1234 or (555) 555-1234", "call 555-1234 or -lrb-555-rrb-\xa0555-1234"),
    (
        "it costs $5 or US$ 10 or £6 or €7 or 8¢ or ¥9",
        "it costs $ 5 or us$ 10 or # 6 or $ 7 or 8 cents or ¥ 9",
    ),
    ("black & white , AT&T , R&B , rock &amp; roll", "black & white at&t r&b rock & roll"),
    ("and/or his/her , a/c , he / she", "and/or his/her a/c he / she"),
    (
        "Mr. and Mrs. Smith meet Dr. Jones on 5th Ave. near St. Louis",
        "mr. and mrs. smith meet dr. jones on 5th ave. near st. louis",
    ),
    ("in the U.S. near Washington D.C. at 5 p.m. today", "in the u.s. near washington d.c. at 5 p.m. today"),
    ("a U.S. The end", "a u.s. the end"),
    ("shirt with the letter A. The man smiles", "shirt with the letter a the man smiles"),
    ("players on team b.", "players on team b."),
    ("Acme Inc. makes trucks by Ford Co.", "acme inc. makes trucks by ford co."),
    ("runs vs. sits , etc.", "runs vs. sits etc."),
    ("wow!! what?! really??? yes! no?", "wow !! what ?! really ??? yes no"),
    ("a man , , with ; a hat :", "a man with a hat"),
    (
        "email me@example.com or see http://www.example.com/a?b=c or www.flickr.com",
        "email me@example.com or see http://www.example.com/a?b=c or www.flickr.com",
    ),
    ("photo.jpg and file1.PNG by @user #sunset", "photo.jpg and file1.png by @user #sunset"),
    ("smile :) or ;-) or :D and <3", "smile :-rrb- or ;--rrb- or :d and < 3"),
    ("<b>bold</b> and 3 < 5 > 2", "<b> bold </b> and 3 < 5 > 2"),
    ("café naïve Zoë Ünïted São Paulo Łódź", "café naïve zoë ünïted são paulo łódź"),
    ("Москва и 東京 and ελληνικά", "москва и 東京 and ελληνικά"),
    (
        "e + mc^2 = ~ 5 * 3 ** _ under_score a_b \\ | back`tick",
        "e + mc ^ 2 = ~ 5 * 3 ** _ under_score a_b \\ | back tick",
    ),
    ("emoji 😀 here and ❤ there 20° C © 2010 ™", "emoji here and ❤ there 20 ° c © 2010 ™"),
    ("soft\xadhyphen and zero\u200bwidth and no break", "softhyphen and zero width and no break"),
    ("doggy.The cat.sat on the mat.Now", "doggy.the cat.sat on the mat.now"),
    ("dog.cat,bird", "dog.cat bird"),
    ("5,6 dogs ,7 cats ,and", "5,6 dogs ,7 cats and"),
    ("people's/dogs' \"'nested'\" ''two'' ``ticks''", "people 's / dogs nested two ticks"),
    ("end with period.", "end with period"),
    ('"Start with quote', "start with quote"),
    ("  leading and   multiple   spaces  ", "leading and multiple spaces"),
    ("-", ""),
    (".", ""),
    ("", ""),
    ("a man in a # 7 jersey", "a man in a # 7 jersey"),
    ("t - shirt , t- shirt , t -shirt", "t shirt t shirt t shirt"),
    ("c++ and C# code", "c++ and c# code"),
    ("x-ray u-turn e-mail re-enters co-op pro- anti-", "x-ray u-turn e-mail re-enters co-op pro- anti-"),
    ("two (2) dogs ; (a) , (b)", "two -lrb- 2 -rrb- dogs -lrb- a -rrb- -lrb- b -rrb-"),
]

# Parts of random captions, at least one for each rule of the tokenizer.
PIECES = """
a A the The dog dogs' man's it's I'm don't can't cannot gonna wanna 'tis 'Twas y'all c'mon o'clock Mr.
Mrs. Dr. St. Inc. co. U.S. a.m. P.M. etc. vs. no. 5 10 1/2 3/4 1,000 3.5 $5 £3 €4 50% #1 @home AT&T R&B &
and/or he/she 2-year-old t-shirt x-ray -- --- - ... .... .. ! !! ? ?! , ; : ( ) [ ] { } " '' `` ` ' “ ” ‘
’ – — … é café naïve ñ ü ½ ¼ 24/7 1990's '90s 12/25/2010 555-1234 (555) www.x.com http://a.b/c me@x.org :)
;-) :D =) <3 < > <b> </b> &amp; &lt; &quot; * ** _ a_b \\ / | ~ ^ + = % ¢ ° ™ © ² x.jpg photo.PNG c++ C#
f# Ph.D. Jr. Ave. Mt. Ft. Miss. Mass. ill. Ill. pty. Co. Sept. Jan. non-U.S. U.S.-U.K. A. B. I. She It's
"Hi" 'hi' ol' rock'n'roll 'n' l'art d'or O'Neil Shi'ite 'em 'cause li'l cap'n don'ts ain't I'LL we'Re N'T
s'mores 1st 2nd 100m 5'10" 6ft 10:30 10:30pm -5 +3 x2 .5 5. $ US$ C$5 ’s n’t don’t it’s dog’s 日本 Ünï
soft\xadhyphen e\u0301 😀 ❤ ·
"""
LETTERS = "aAbBsStTnNuUmMoO0123459 .,'-/&$()\"!?:;#@<>_*"


def test_hard_captions_equal_the_java_program():
    for caption, words in HARD:
        assert " ".join(ptb_tokenize(caption)) == words, caption


def test_line_breaks_are_spaces():
    assert ptb_tokenize("a dog\nruns\r\nfast\u2028away") == ["a", "dog", "runs", "fast", "away"]


def random_captions(count, seed=0):
    rng, pieces = random.Random(seed), PIECES.split()
    for _ in range(count):
        kind = rng.random()
        if kind < 0.3:
            yield " ".join(rng.choices(pieces, k=rng.randint(1, 8)))
        elif kind < 0.7:
            joints = ["", " ", "", "-", "'", "."]
            yield "".join(rng.choice(pieces) + rng.choice(joints) for _ in range(rng.randint(1, 6))).strip()
        else:
            yield " ".join("".join(rng.choices(LETTERS, k=rng.randint(1, 14))).split())


def test_random_captions_equal_the_java_program():
    try:
        java = find_java()
    except MetricUnavailable as reason:
        pytest.skip(str(reason))
    captions = [caption for caption, _ in HARD] + list(random_captions(4000))
    jar = pycocoevalcap_folder() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    # A word between captions, because the Java program may continue a sentence on the next line.
    done = subprocess.run(
        [java, "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"],
        input="\nx\n".join(captions).encode(),
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode().split("\n")[::2]
    punctuation = PUNCTUATION | {""}
    theirs = [[token for token in line.split(" ") if token not in punctuation] for line in lines]
    different = [c for c, tokens in zip(captions, theirs, strict=True) if ptb_tokenize(c) != tokens]
    assert not different
