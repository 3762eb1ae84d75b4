"""How many examples a property test tries: `make test-long` asks for a multiple of what `make test` does."""

import os


def examples(count: int) -> int:
    return count * int(os.environ.get("MISO_EXAMPLES_TIMES", "1"))
