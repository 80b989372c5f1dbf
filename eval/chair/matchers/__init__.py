"""Finding mentions of objects in a caption: of COCO's 80, or those of another vocabulary.

Two matchers share one vocabulary (`damro.eval.chair.vocabulary`) and differ in how they read an inflected word:

``nltk``
    part of speech by NLTK's tagger, as the released CHAIR scripts do; needs NLTK's data.
``builtin``
    part of speech guessed from the form and its neighbours; needs nothing.
"""

from typing import NamedTuple, Protocol

from damro.eval.chair.vocabulary import Vocabulary
from damro.eval.errors import EvalError

MATCHERS: tuple[str, ...] = ("nltk", "builtin")
"""The names that `load_matcher` knows, besides ``auto``."""


class Mention(NamedTuple):
    """One object named by a caption.

    Attributes:
        name: The COCO name.
        word: The caption's own words for it, ``caption[start:end]``.
        start: Place of its first character in the caption.
        end: Place after its last character.
        token: Index of its first token, punctuation counted.
    """

    name: str
    word: str
    start: int
    end: int
    token: int


class Reading(NamedTuple):
    """What a matcher reads in a caption.

    Attributes:
        mentions: Every mention of an object, in order, repetitions included.
        n_tokens: Tokens, punctuation counted.
        length: The same with each pair that is read as one word counted once, as CHAIR scripts count "Len".
    """

    mentions: list[Mention]
    n_tokens: int
    length: int


class Matcher(Protocol):
    """What `damro.eval.chair.scoring` asks of a matcher."""

    @property
    def name(self) -> str:
        """The name under which results report it."""

    def tokens(self, caption: str) -> list[str]:
        """The pieces of the lower-cased caption, punctuation among them."""

    def read(self, caption: str) -> Reading:
        """What the caption names, and how long it is."""

    def find(self, caption: str) -> list[Mention]:
        """Every mention in the caption, in order, repetitions included."""


def load_matcher(name: str = "auto", vocabulary: Vocabulary | None = None) -> Matcher:
    """Return the matcher of that name.

    Args:
        name: ``nltk``, ``builtin``, or ``auto``: ``nltk`` where its data is present, else ``builtin``. The
            matcher's own ``name`` tells which one it is.
        vocabulary: What to look for; None takes the shipped one.

    Raises:
        EvalError: No such matcher, or ``nltk`` was asked for and its data is missing.

    >>> [mention.name for mention in load_matcher("builtin").find("Two puppies share a hot dog.")]
    ['dog', 'hot dog']
    """
    if name not in (*MATCHERS, "auto"):
        raise EvalError(f"matcher: must be one of {', '.join(MATCHERS)} or auto, got {name!r}")
    # Imported here because the one pulls in nltk, which takes longer to import than all of eval.
    if name != "builtin":
        from damro.eval.chair.matchers.tagged import TaggedMatcher, missing_data

        missing = missing_data()
        if not missing:
            return TaggedMatcher(vocabulary)
        if name == "nltk":
            raise EvalError(
                f"matcher: nltk needs its data packages, {', '.join(missing)} not found; run 'damro setup-nltk' on "
                "a networked machine, set NLTK_DATA to a folder that holds them, or use matcher builtin"
            )
    from damro.eval.chair.matchers.closed import ClosedMatcher

    return ClosedMatcher(vocabulary)
