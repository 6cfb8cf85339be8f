"""Penn Treebank tokens, lower-cased, without punctuation: what caption metrics are computed on."""

import re

_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def ptb_tokenize(text: str) -> list[str]:
    """The words of `text`."""
    return _TOKEN.findall(text.lower())
