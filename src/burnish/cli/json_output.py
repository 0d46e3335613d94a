"""What `--json` prints."""

import json
from typing import Any

from burnish.reproducibility.files import json_tree


def print_json(content: Any, *, on_one_line: bool = False) -> None:
    """Print one JSON document, all that a reading command writes to standard output; NaN and infinity are null.

    `on_one_line` is for a command that looks again and again, and prints a document each time.
    """
    text = json.dumps(json_tree(content), indent=None if on_one_line else 1, ensure_ascii=False, allow_nan=False)
    print(text, flush=True)
