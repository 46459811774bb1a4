"""`python -m caiflow`: the command line, where the command isn't on the path."""

import sys

from caiflow.engine.cli import main

sys.exit(main())
