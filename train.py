"""See `python train.py --help`; the code is in sca_caption/cli/train.py, where the installed command finds it too."""

from sca_caption.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
