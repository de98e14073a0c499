"""Names in copick's projects."""

import re


def copick_name(kind: str) -> str:
    """A kind's name as copick allows it: without "_", which parts the names of its files."""
    return re.sub("_+", "-", kind).strip("-") or "object"
