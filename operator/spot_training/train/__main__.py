"""``python -m spot_training.train [--] script.py args...``: see `launcher`."""

import sys

from spot_training.train.launcher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
