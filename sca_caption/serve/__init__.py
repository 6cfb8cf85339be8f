"""Local web page that captions photographs, and its HTTP API: `caption.py --serve`.

Needs the extra `web`. The server makes no requests to other servers and writes nothing of a photograph to disk.
"""
