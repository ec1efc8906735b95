"""`python -m compiler.cli` is `tensorwright`."""

import sys

from compiler.cli.entry import main

sys.exit(main())
