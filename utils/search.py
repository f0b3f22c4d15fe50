"""``python -m utils.search``, which README and the launchers name: see utils/sweep/search.py."""

import sys

from utils.sweep.search import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
