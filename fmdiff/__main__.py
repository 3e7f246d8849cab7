import sys

from fmdiff.cli import main

sys.exit(main())
