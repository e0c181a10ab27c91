import sys

from autosparse.cli import main

sys.exit(main())
