"""`python -m longrope_jax` is the command `longrope`."""

import sys

from longrope_jax.cli import main

sys.exit(main())
