"""What of a regex means the same in every library."""

from __future__ import annotations

import re

_PIECE = re.compile(
    r"""
    (?P<class> \[\^? (?: \\(?:[dswnrtfv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^\w\s]) | [^\\\[\]] )+ \])
  | (?P<escape> \\(?:[dswnrtfv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^\w\s]))
  | (?P<any> \.)
  | (?P<open> \((?:\?:)?)
  | (?P<close> \))
  | (?P<repeat> (?:[*+?]|\{\d{1,4}(?:,\d{0,4})?\})\??)
  | (?P<or> \|)
  | (?P<plain> [^\\.^$*+?()\[\]{}|])
    """,
    re.X,
)


def escape(text: str) -> str:
    """A regex of just this text. Rust's read escaped < and > as the beginning and end of a word, so no more is escaped than must be."""
    return re.sub(r"[\\.+*?()|\[\]{}^$#&~/-]", lambda m: "\\" + m[0], text)


def exact_regex(pattern: str) -> str | None:
    """The pattern for a library that matches whole texts and lets `.` match a newline; None if it holds what libraries
    read differently (look-around, flags, anchors inside, classes of letters, references)."""
    pattern = pattern.removeprefix("^")
    if _ends_anchored(pattern):
        pattern = pattern[:-1]
    found: list[str] = []
    at, repeatable = 0, False
    while at < len(pattern):
        match = _PIECE.match(pattern, at)
        if match is None or (match["repeat"] and not repeatable):
            return None
        repeatable = not (match["repeat"] or match["open"] or match["or"])
        found.append("[^\\n\\r]" if match["any"] else match[0])
        at = match.end()
    return "".join(found)


def _ends_anchored(pattern: str) -> bool:
    """Whether the last character is a $ that is not escaped."""
    return pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2 == 1


def is_anchored(pattern: str) -> bool:
    """Whether a search for the pattern is a match of the whole text, so that both readings agree."""
    if not (pattern.startswith("^") and _ends_anchored(pattern)) or exact_regex(pattern) is None:
        return False
    depth = 0
    for piece in _PIECE.finditer(pattern[1:-1]):
        depth += bool(piece["open"]) - bool(piece["close"])
        if piece["or"] and depth == 0:
            return False
    return True
