"""Foreign text made safe to show: ids of apps and words of backends end up in logs and traces."""

# Longer than any id that is taken (128) and any problem that is told of a backend; a line of them stays readable.
CHARACTERS_MAX = 512


def printable(text: str) -> str:
    r"""At most ``CHARACTERS_MAX`` characters; what would move a cursor, end a line or turn its direction is escaped.

    So a text of two lines is one line with ``\n`` in it, and cannot pass for a line of its own.
    """
    cut = text if len(text) <= CHARACTERS_MAX else f"{text[:CHARACTERS_MAX]}..."
    if cut.isprintable():
        return cut
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in cut
    )
