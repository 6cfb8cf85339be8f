"""See `python preprocess.py --help`; the code is in sca_caption/cli/preprocess.py, where the installed command finds it too."""

from sca_caption.cli.preprocess import main

if __name__ == "__main__":
    raise SystemExit(main())
