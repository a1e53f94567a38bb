"""elman beside the limits of this machine, without peers: `python bench/roofline.py [--all] [--json FILE]`."""

import sys

from elman.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--alone", *sys.argv[1:]]))
