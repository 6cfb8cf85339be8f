"""See `python evaluate.py --help`; the code is in sca_caption/cli/evaluate.py, where the installed command finds it too."""

from sca_caption.cli.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
