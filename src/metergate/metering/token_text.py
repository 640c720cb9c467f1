"""A text of which it is known where the text of each token id in it begins."""

from bisect import bisect_left


class TokenText:
    """A growing text that is taken away from its beginning, piece by piece.

    A token goes with the first character that it stands for; one without text of its own goes with what follows it.
    """

    __slots__ = ("starts", "text")

    def __init__(self) -> None:
        self.text = ""
        self.starts: list[int] = []  # by token, in order: characters from the text's beginning

    def append_token(self, text: str) -> None:
        """Append what a token added to the text, perhaps nothing."""
        self.starts.append(len(self.text))
        self.text += text

    def append(self, other: "TokenText") -> None:
        """Append another text with its tokens."""
        characters = len(self.text)
        self.starts += [characters + start for start in other.starts] if characters else other.starts
        self.text += other.text

    def take(self, characters: int) -> "TokenText":
        """Take the first characters away and return them, with the tokens whose text begins in them."""
        taken = TokenText()
        tokens = bisect_left(self.starts, characters)
        taken.text, self.text = self.text[:characters], self.text[characters:]
        taken.starts = self.starts[:tokens]
        self.starts = [start - characters for start in self.starts[tokens:]]
        return taken

    def drop(self, characters: int) -> None:
        """Take the first characters away; their tokens go with what follows."""
        self.text = self.text[characters:]
        self.starts = [max(0, start - characters) for start in self.starts]


def begun_at_end(text: str, wanted: tuple[str, ...]) -> int:
    """How many characters at the end of a text are the beginning of one of the wanted texts; 0 if none are."""
    longest = min(len(text), max(map(len, wanted), default=1) - 1)
    for characters in range(longest, 0, -1):
        if any(len(one) > characters and one.startswith(text[-characters:]) for one in wanted):
            return characters
    return 0
