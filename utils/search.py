"""``python -m utils.search``, which README and the launchers name: see utils/sweep/search.py."""

import signal
import sys

from utils.sweep.search import main

if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end in silence when head has seen enough
    sys.exit(main(sys.argv[1:]))
