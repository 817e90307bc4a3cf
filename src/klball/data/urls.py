"""URLs that are written down: a password or a token in them is not."""

from typing import Any
from urllib.parse import urlsplit, urlunsplit


def without_secrets(value: Any) -> Any:
    """A URL without its user, password and query; everything else as it is."""
    if not isinstance(value, str) or "://" not in value:
        return value
    parts = urlsplit(value)
    host = parts.netloc.rpartition("@")[2]
    hidden = f"***@{host}" if "@" in parts.netloc else host
    return urlunsplit((parts.scheme, hidden, parts.path, "***" if parts.query else "", parts.fragment))
