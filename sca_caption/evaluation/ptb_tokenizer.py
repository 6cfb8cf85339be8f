"""Penn Treebank tokenizer: the lower-case words without punctuation on which caption metrics are computed.

The metrics of the COCO caption challenge (Chen et al., 2015, arXiv 1504.00325) use Stanford's PTBTokenizer (CoreNLP
3.4.1, `-preserveLines -lowerCase`), a Java program, and remove punctuation from its output. `ptb_tokenize` returns the
same words without Java. Like the Java program, it is a longest-match lexer: at each position, the rule with the longest
match wins, including the context that the rule requires after its token; the first rule of the table wins a tie. A rule
is a regular expression; its token is group 1, or the whole match if it has no group. Characters that no rule matches,
such as spaces and unknown symbols, separate tokens.

Unexpected results of the Java program are kept, because published scores contain them: brackets become the words -lrb-
and -rrb-, `cannot` is two words, `!!` is a word although `!` is removed, and a caption that ends in `inc.` or in a single
letter keeps its full stop. The output is the same on all 40,000 captions of Flickr8k, on captions of COCO and of web
images, and on random strings. Known differences: letters and combining marks that only one program's version of Unicode
has; and after a single letter and a full stop, the Java program may continue a sentence on the next line of its file.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

# Removed tokens. Brackets are kept, because the original list has them in upper case but tokens are lower-case.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
# Fast path without the rules: letters between spaces are one token, except for words of SPLIT_WORDS.
PLAIN_WORDS = re.compile(r"(?:[A-Za-z]+[ \n]+)+")
# Word -> length of its first token.
SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "lemme": 3, "gimme": 3}
QUOTES = str.maketrans(
    {'"': "''"}
    | dict.fromkeys("‘‛‹\x91", "`")
    | dict.fromkeys("’›\x92", "'")
    | dict.fromkeys("“«\x93", "``")
    | dict.fromkeys("”»\x94", "''")
)
BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"})
FRACTIONS = str.maketrans({"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"})
CURRENCIES = str.maketrans({"¢": "cents", "£": "#"} | dict.fromkeys("¤₠€\x80", "$"))


def ptb_tokenize(text: str) -> list[str]:
    """Tokenize one caption as PTBTokenizer tokenizes a line of a file.

    A few tokens contain a no-break space (`1\\xa01/2`). The metrics split at any space and count them as two words.
    """
    text = text.replace("\n", " ") + "\n"
    tokens: list[str] = []
    position = 0
    while position < len(text):
        if plain := PLAIN_WORDS.match(text, position):
            words, position = plain[0].lower().split(), plain.end()
            tokens += words if SPLIT_WORDS.keys().isdisjoint(words) else split_words(words)
        elif text[position].isspace():
            position += 1
        else:
            rest = text[position:]
            token, length = last_token(rest) if " " not in rest else longest_token(rest)
            position += length
            tokens.append(token.lower())
    return [token for token in tokens if token and token not in PUNCTUATION]


def split_words(words: Iterable[str]) -> Iterator[str]:
    """Yield words; those of SPLIT_WORDS as two tokens."""
    for word in words:
        cut = SPLIT_WORDS.get(word, len(word))
        yield word[:cut]
        if word[cut:]:
            yield word[cut:]


def longest_token(text: str) -> tuple[str, int]:
    """(token, its length in `text`) of the rule with the longest match; ("", 1) if no rule matches."""
    best, rewrite = None, None
    for pattern, rewriting in compiled_rules():
        match = pattern.match(text)
        if match and (best is None or match.end() > best.end()):
            best, rewrite = match, rewriting
    if best is None:
        return "", 1
    group = best.re.groups
    return (rewrite(best[group]) if rewrite else best[group]), best.end(group)


# Cached, because most captions end in one of a few words and a full stop, and rules ignore the text before it.
last_token = functools.lru_cache(maxsize=10_000)(longest_token)


@functools.cache
def compiled_rules() -> list[tuple[re.Pattern, Callable[[str], str] | None]]:
    """Compile RULES to (pattern, function that rewrites the token, or None) pairs, in order."""
    bmp = [chr(code) for code in range(0x10000)]  # the Java program supports no other plane
    letters = {character for character in bmp if unicodedata.category(character)[0] == "L"}
    marks = {character for character in bmp[:0xF00] if unicodedata.category(character)[0] == "M"}
    marks |= set("\xad" + "".join(bmp[0x2C2:0x2C6] + bmp[0x2D2:0x2E0] + bmp[0x2E5:0x300]))
    parts = {"LETTER": ranges_of(letters), "WORD_LETTER": ranges_of(letters | marks), **PARTS}
    compiled = []
    for pattern, rewriting in RULES:
        while "{{" in pattern:
            pattern = re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], pattern)
        assert re.compile(pattern).groups <= 1, pattern
        compiled.append((re.compile(pattern), rewriting))
    return compiled


def ranges_of(characters: Iterable[str]) -> str:
    """Characters as ranges for a character class [...] of a regular expression."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in ranges)


def plain_quotes(token: str) -> str:
    return token.replace("&apos;", "'").replace("&quot;", '"').translate(QUOTES)


def drop_soft_hyphens(token: str) -> str:
    return token.replace("\xad", "") or "-"


def plain_ampersands(token: str) -> str:
    return re.sub("(?i)&amp;", "&", token)


def name_parentheses(token: str) -> str:
    return token.replace("(", "-lrb-").replace(")", "-rrb-")


def keep_together(token: str) -> str:
    """Rewrite a token that contains spaces, such as `1 1/2` or a telephone number, with no-break spaces."""
    return name_parentheses(token.replace(" ", "\xa0"))


# Named parts of the patterns. Only (?i:...) ignores case, as in the Java program.
PARTS = {
    "CHAR": r"(?:[{{WORD_LETTER}}]|&[aeiouAEIOU](?i:acute|grave|uml);)",
    "CHAR_OR_DIGIT": r"(?:[{{WORD_LETTER}}\d]|&[aeiouAEIOU](?i:acute|grave|uml);)",
    "WORD": r"{{CHAR}}{{CHAR_OR_DIGIT}}*(?:[.!?]{{CHAR}}{{CHAR_OR_DIGIT}}*)*",
    "APOS": r"(?:['’\x92]|(?i:&apos;))",
    "ANY_APOS": r"(?:['’\x92`‘‛\x91]|(?i:&apos;))",
    "CLITIC": r"{{APOS}}(?:[msdMSD]|(?i:re|ve|ll))",
    "NOT": r"(?i:n){{ANY_APOS}}(?i:t)",
    "SPACE": r"[ \t\xa0\u2000-\u200a\u3000\r\n\u2028\u2029\x0b\x0c\x85]",
    "PAUSE": r"[,;:\u3001]",
    "NUMBER": r"(?:\d*(?:[.:,\xad\u066b\u066c]\d+)+|\d+)",
    "TAG": r"<(?:[!?][A-Za-z-][^>\r\n]*"
    r"|[A-Za-z][\w:.-]*(?: +[A-Za-z][\w:.-]*(?: *= *(?:'[^']*'|\"[^\"]*\"))?)* */?|/[A-Za-z][\w:.-]*) *>",
    # words joined by hyphens, each optionally after d', l' or o'
    "JOINED": r"{{PART}}(?:[-_\u058a\u2010\u2011]{{PART}})*",
    "PART": r"(?:[dDoOlL]{{ANY_APOS}}[{{LETTER}}\d])?[{{LETTER}}\d]+",
    "CODE": r"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\xad]+))+",
    "FIRM": r"[A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)+",
    "INITIALS": r"(?:[A-Za-z](?:\.[A-Za-z])*|(?i:canada|sino|korean|eu|japan|non)-(?i:u\.s)"
    r"|(?i:u\.s\.-u\.(?:s\.s\.r|k)))",
    # months, days, states, companies: usually before a lower-case word
    "ABBREVIATION": r"(?:(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu(?:rs)?|fri"
    r"|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt"
    r"|wisc?|wyo|inc|cos?|corp|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|tel|est|ext|sq"
    r"|jr|sr|bros|(?:ed|ph)\.d|blvd|rd|esq|etc|al|seq|bldg)|(?i:pp?t)[ye](?i:s)?"
    r"|A(?i:z|rk)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash))\.",
    # titles and similar abbreviations: usually before a name
    "TITLE": r"(?:(?i:mrs?|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl"
    r"|pvt|capt|ste?|ave|pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp"
    r"|mlle|mme|msgr|sfc|vs|alex|wm|jos|cie|a\.k\.a|cf|treas|ph|invt|elec|natl|dept)"
    r"|M(?i:iss)|(?i:m)[ft](?i:g)|{{INITIALS}})\.",
    # capitalised words that begin a sentence after a single letter and a full stop
    "OPENER": r"(?:A(?i:bout|ccording|dditionally|fter|n|s|t)?|B(?i:ut)|E(?i:arlier)|H(?i:e|er|ere|owever)"
    r"|I(?i:f|n|t)|L(?i:ast)|M(?i:any|ore|r\.|s\.)|N(?i:ow)|O(?i:nce|ne|ther|ur)|S(?i:he|ince|o|ome|uch)"
    r"|T(?i:hat|he|heir|hen|here|hese|hey|his)|W(?i:e|hen|hile|hat)|Y(?i:et|ou)|{{TAG}})",
    "EXTENSION": r"(?i:bat|bmp|cgi|class|cpp|c|dll|docx?|exe|gif|gz|html?|h|jar|java|jpe?g|mov|mp3|pdf|php"
    r"|pl|png|ppt|ps|py|sql|tar|txt|wav|xml|x|zip)",
    "URL_END": r"[^ \t\n\f\r\"<>|.!?(){},-]",
}
RULES: list[tuple[str, Callable[[str], str] | None]] = [
    (r"(?i:c\+\+|[cf]#)", None),
    (r"((?i:can))(?i:not)", None),
    (r"('(?i:t))(?i:was|is)", None),
    (r"((?i:gon|wan))(?i:na)", None),
    (r"((?i:got))(?i:ta)", None),
    (r"((?i:lem|gim))(?i:me)", None),
    (r"{{TAG}}", keep_together),
    (r"&(?i:md|mdash|ndash);|[\x96\x97\u2013-\u2015]", lambda token: "--"),
    (r"(?i:&amp;)", plain_ampersands),
    (r"&(?:(?i:ht|tl|ur|lr|qc|ql|qr|odq|cdq)|#[0-9]+);", None),
    (r"({{WORD}}){{CLITIC}}", drop_soft_hyphens),
    (r"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*){{NOT}}", drop_soft_hyphens),
    (r"{{WORD}}", drop_soft_hyphens),
    # words with an apostrophe that stay one token
    (
        r"[A-HJ-XZn]{{ANY_APOS}}[{{LETTER}}]{2,}|[{{LETTER}}]+[aeiouyAEIOUY]{{ANY_APOS}}[aeiouA-Z][{{LETTER}}]*"
        r"|(?i:cont'd\.?|'twas|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|o{{ANY_APOS}}o)"
        r"|{{APOS}}(?i:n{{APOS}}?|em|till?|cause|[2-9]0s)|(?:[lLdDjJ]|(?i:dunkin|somethin|ol)){{APOS}}",
        None,
    ),
    (r"((?i:y){{APOS}})[{{LETTER}}]", None),
    (r"(?i:https?://)[^ \t\n\f\r\"<>|(){}]+{{URL_END}}", None),
    (
        r"(?:(?i:www)\.(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
        r"|(?:[^ \t\n\f\r\"`'<>|.!?(){},-_$]+\.)+(?i:com|net|org|edu))(?:/[^ \t\n\f\r\"<>|()]+{{URL_END}})?",
        None,
    ),
    (
        r"(?:(?i:&lt;)|<)?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\xa0{}]*@(?:[^ \t\n\f\r\"<>|(){}.\xa0]+\.)*"
        r"[^ \t\n\f\r\"<>|(){}.\xa0]+(?:(?i:&gt;)|>)?",
        None,
    ),
    (r"@[a-zA-Z_][a-zA-Z_0-9]*|#{{CHAR}}+", None),
    (r"({{CLITIC}})[^A-Za-z]", plain_quotes),
    (r"({{NOT}})[^A-Za-z]", plain_quotes),
    (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", None),
    (r"[-+]?{{NUMBER}}", drop_soft_hyphens),
    (r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)", None),
    (r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}", keep_together),
    (r"[¼½¾\u2153-\u215e]", lambda token: token.translate(FRACTIONS)),
    (
        r"-(?i:[rl][rcs]b)-|(?i:c\.d\.s|pro-|anti-|s&(?:amp;)?p-500|s&(?:amp;)?ls|cap{{APOS}}n|c{{APOS}}est)",
        plain_ampersands,
    ),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", None),
    (r"[A-Z]*\$|#", None),
    (r"[¢£¤¥\x80₠€\u060b\u0e3f₤\uffe0\uffe1\uffe5\uffe6]", lambda token: token.translate(CURRENCIES)),
    (r"([A-Za-z])\.{{SPACE}}+{{OPENER}}{{SPACE}}", None),
    (r"((?i:ca|figs?|prop|nos?|art|bldg|pp|op)\.){{SPACE}}?\d", None),
    (r"({{ABBREVIATION}})(?s:..)", None),
    (r"{{ABBREVIATION}}", None),
    (r"{{TITLE}}", None),
    (r"({{INITIALS}}){{SPACE}}", None),
    (r"({{APOS}}[0-9][0-9]){{SPACE}}", None),
    (r"({{CHAR_OR_DIGIT}}+(?:\.{{CHAR_OR_DIGIT}}+)*\.{{EXTENSION}})(?:{{SPACE}}|[.?!,])", None),
    (r"({{WORD}}\.){{PAUSE}}", drop_soft_hyphens),
    (  # telephone numbers
        r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
        r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
        r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
        keep_together,
    ),
    (r"\"|(?i:&quot;)", plain_quotes),
    (r"<|(?i:&lt;)", lambda token: "<"),
    (r">|(?i:&gt;)", lambda token: ">"),
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", name_parentheses),
    (r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)", name_parentheses),
    (r"[(){}\[\]]", lambda token: token.translate(BRACKETS)),
    (r"-+", lambda token: "--" if 3 <= len(token) <= 4 else token),
    (r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85…]", lambda token: "..."),
    (r"@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+|[,;:、.¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa。=/]", None),
    (r"({{CODE}}\.){{PAUSE}}", drop_soft_hyphens),
    (r"{{CODE}}", drop_soft_hyphens),
    (r"({{JOINED}}\.){{PAUSE}}", None),
    (r"{{JOINED}}", None),
    (r"({{FIRM}}\.){{PAUSE}}", plain_ampersands),
    (r"{{FIRM}}", plain_ampersands),
    (r"(')[A-Za-z][^ \t\n\r\xa0]", plain_quotes),
    (r"{{CLITIC}}|{{NOT}}", plain_quotes),
    (r"''|[`‘’‚‛“”„‟\x91-\x94‹›«»]{1,2}|{{APOS}}", plain_quotes),
    (r"<<|>>", None),
    (
        r"[+%&~^|\\¦§¨©¬®¯°-³´-º×÷\u0387\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060a\u060c\u0614"
        r"\u061b\u061e\u066a\u066d\u0703-\u070d\u07f6-\u07f8\u0964\u0965\u0e4f\u1fbd\u2016\u2017\u2020-\u2023"
        r"\u2030-\u2038\u203b\u203e-\u2042\u2044\u207a-\u207f\u208a-\u208e\u2100-\u214f\u2190-\u2bff\u3012\u30fb"
        r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]",
        None,
    ),
]
