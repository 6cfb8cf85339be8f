"""See `python caption.py --help`. The code is in sca_caption/cli/caption.py, for the installed command too."""

from sca_caption.runtime.start import start

if __name__ == "__main__":
    raise SystemExit(start("sca_caption.cli.caption"))
