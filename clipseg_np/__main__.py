"""`python -m clipseg_np` is the command `clipseg-np`."""

import sys

from .cli.parser import main

sys.exit(main())
