"""The table of ratios, as `elman bench` prints it: `python bench/table.py [--all] [--json FILE]`; --help says more."""

import sys

from elman.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
