"""Data on a terminal: no control sequence reaches it, whatever a text, an id or a path holds."""

CONTROL = {code: chr(0x2400 + code) for code in range(0x20)}  # U+241B ␛ for ESC, and so on
DELETED = {0x7F: "\u2421"}
ABOVE_ASCII = {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}  # 0x9b alone begins a sequence too
SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")  # no terminal encoding holds half a pair
VISIBLE = {**CONTROL, **DELETED, **ABOVE_ASCII, **SURROGATES}


def visible(text: str, *, one_line: bool = False) -> str:
    """The text with its control characters as visible signs.

    New lines stay; with `one_line` they and tabs become spaces.
    """
    spaces = dict.fromkeys((0x09, 0x0A, 0x0D), " ") if one_line else {0x0A: "\n", 0x09: "\t"}
    return text.translate(VISIBLE | spaces)
