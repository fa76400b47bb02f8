"""``python -m sta_lightning`` is ``sta``."""

import sys

from sta_lightning.cli.main import main

sys.exit(main())
