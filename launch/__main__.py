"""`python -m launch`: the `transfer` command without installation."""

import sys

from launch.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
