"""Where a source of a conversion is: on this machine, or on the hub, where it can be looked at and not converted."""

from pathlib import Path

from ...hub.path import HubPath

SourcePath = Path | HubPath
"""Both have what reading takes: `name`, `suffix`, `parent`, `/`, `with_name`, `exists`, `open`, `read_bytes`, ..."""
