"""``python -m utils.search``, which README and the launchers name: see utils/sweep/search.py."""

import sys

from utils.errors import end_with_the_reader
from utils.sweep.search import main

if __name__ == "__main__":
    end_with_the_reader()
    sys.exit(main(sys.argv[1:]))
