"""See `python caption.py --help`; the code is in sca_caption/cli/caption.py, where the installed command finds it too."""

from sca_caption.cli.caption import main

if __name__ == "__main__":
    raise SystemExit(main())
