import sys

from vaefast.cli import main

sys.exit(main())
