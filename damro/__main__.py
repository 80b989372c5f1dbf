"""``python -m damro``."""

import sys

from damro.cli import main

if __name__ == "__main__":
    sys.exit(main())
