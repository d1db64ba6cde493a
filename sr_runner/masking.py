"""Secrets out of whatever is written or printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET_NAME = r"(?:passw|secret|token|credential|api_?key|access_?key|private_?key|\bauth)"
_SECRET_KEY = re.compile(rf"(?i){_SECRET_NAME}")
_SECRET_INSIDE = re.compile(
    rf"""(?i)(?P<key>[\w.-]*{_SECRET_NAME}[\w.-]*['"]?\s*[:=]\s*)(?:'[^']*'|"[^"]*"|(?![{{\[\s])[^,}}\]&\s]+)"""
)
"""In the text of a mapping (`{secret: 123}`) or of a command line."""
_SECRET_IN_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)[^/\s@]+@")
_SECRET_IN_QUERY = re.compile(r"(?i)(?P<key>[?&][\w.-]*(?:signature|token|secret|passw|key|credential)[\w.-]*=)[^&\s]+")
_MASKED = "*****"


def masked(value: Any, key: str = "") -> Any:
    """`value` with every secret in it replaced: what goes into logs, checkpoints and the tracker."""
    if isinstance(value, Mapping):
        return {k: masked(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(v, key) for v in value]
    if _SECRET_KEY.search(key) and value not in (None, ""):
        return _MASKED
    if isinstance(value, str):
        value = _SECRET_IN_URL.sub(rf"\g<scheme>{_MASKED}@", value)
        return _SECRET_IN_QUERY.sub(rf"\g<key>{_MASKED}", value)
    return value


def masked_override(override: str) -> str:
    """One `key=value` of the command line without secrets."""
    key, sign, value = override.partition("=")
    return f"{key}{sign}{masked_text(str(masked(value, key)))}" if sign else override


def masked_text(text: str) -> str:
    """Any text about a config without secrets."""
    return _SECRET_INSIDE.sub(rf"\g<key>{_MASKED}", str(masked(text)))
