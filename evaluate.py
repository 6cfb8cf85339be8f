"""See `python evaluate.py --help`. The code is in sca_caption/cli/evaluate.py, for the installed command too."""

from sca_caption.cli.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
