"""`python -m attribution_client` is the command `attribution`."""

import sys

from attribution_client.terminal import main

if __name__ == "__main__":
    sys.exit(main())
