"""What processes of the tests have imported before they are forked; nothing here may run a backward pass."""

from importlib import import_module

import train  # noqa: F401
from tests.tiny import CONFIG

for _parts in (CONFIG["encoders"], CONFIG["projectors"], CONFIG["heads"]):
    for _part in _parts.values():
        import_module(_part["class_path"].rpartition(".")[0])
