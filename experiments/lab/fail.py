"""How a script ends that cannot do what it was asked."""

import sys
from typing import NoReturn


def fail(message: str) -> NoReturn:
    """Prints `error: message` on stderr as one line and exits with status 2."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)
