"""The package's description, made from README.md. Everything else is in pyproject.toml.

Outside the repository, pictures and links to its files lead nowhere: pictures are left out, and links become text.
"""

import re
from pathlib import Path

from setuptools import setup

text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
text = re.sub(r"<img [^>]*>\n*|!\[[^]]*\]\([^)]*\)\n*", "", text)
text = re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", text)
setup(long_description=text, long_description_content_type="text/markdown")
