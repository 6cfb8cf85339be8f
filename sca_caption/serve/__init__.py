"""A local web page that captions photographs, and its API: `caption.py --serve`.

Needs the extra `web`. Nothing here asks another server for anything, and nothing of a photograph is written to disk.
"""
