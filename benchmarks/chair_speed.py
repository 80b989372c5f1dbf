"""How much faster the ``nltk`` matcher is than tagging and lemmatising every caption, with the same output.

    NLTK_DATA=... python benchmarks/chair_speed.py [--repeats 7]

Both ways run in one process on the 500 captions of each recorded file, in turn, and the medians of
their CPU times are compared.
The naive way is given its best: the tagger and WordNet are loaded beforehand and kept (``nltk.pos_tag`` loads the
tagger anew for every caption). Every run of the matcher starts with a new one, so that nothing it remembers carries
over. The outputs are compared before anything is timed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from nltk import word_tokenize
from nltk.corpus import wordnet
from nltk.stem import WordNetLemmatizer
from nltk.tag import PerceptronTagger

from damro.eval.chair.matchers.tagged import TaggedMatcher
from damro.eval.chair.vocabulary import load_vocabulary
from damro.eval.records import read_records

CAPTIONS = Path(__file__).parents[1] / "tests" / "data" / "captions"
WORDNET_POS = {"J": "a", "V": "v", "N": "n", "R": "r"}


def naive_objects(captions: Sequence[str], tagger: PerceptronTagger) -> list[list[str]]:
    """Objects of each caption, every token tagged and every token lemmatised."""
    vocabulary = load_vocabulary()
    lemmatize = WordNetLemmatizer().lemmatize
    found = []
    for caption in captions:
        tagged = tagger.tag(word_tokenize(caption.lower()))
        lemmas = [lemmatize(token, WORDNET_POS.get(tag[0], "n")) for token, tag in tagged]
        found.append([mention.name for mention in vocabulary.find(enumerate(lemmas))])
    return found


def our_objects(captions: Sequence[str], matcher: TaggedMatcher) -> list[list[str]]:
    """Objects of each caption by the matcher."""
    return [[mention.name for mention in matcher.find(caption)] for caption in captions]


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()  # both ways run on one core: CPU time leaves out what else the machine does
    run()
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    wordnet.ensure_loaded()
    tagger = PerceptronTagger()
    print(f"{'captions':28} {'naive s':>8} {'ours s':>8} {'ratio':>6}   (medians of {args.repeats})")
    for path in sorted(CAPTIONS.glob("*.jsonl.gz")):
        captions = [record.fields["caption"] for record in read_records(path)]
        if naive_objects(captions, tagger) != our_objects(captions, TaggedMatcher()):
            print(f"{path.name}: the outputs differ", file=sys.stderr)
            return 1
        naive, ours = [], []
        for _ in range(args.repeats):
            matcher = TaggedMatcher()
            naive.append(seconds(lambda: naive_objects(captions, tagger)))  # noqa: B023 - called at once
            ours.append(seconds(lambda: our_objects(captions, matcher)))  # noqa: B023 - called at once
        name = path.name.removesuffix(".jsonl.gz")
        print(f"{name:28} {median(naive):8.3f} {median(ours):8.3f} {median(naive) / median(ours):6.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
