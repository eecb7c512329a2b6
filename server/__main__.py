"""`python -m server` is `engine serve`."""

import sys

from server.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "serve")
    main()
