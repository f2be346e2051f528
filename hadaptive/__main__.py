import sys

from hadaptive.cli import main

sys.exit(main())
