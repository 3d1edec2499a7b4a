"""CIDEr-D (https://arxiv.org/abs/1411.5726): consensus of a caption with its references, by TF-IDF of n-grams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Tokens = Sequence[str]
NUM_ORDERS = 4
SIGMA = 6.0


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> NDArray[np.float64]:
    """CIDEr-D of every image; the corpus's score is the mean, published values are 100 times that.

    For n = 1 to 4: ``10 / R * sum_r exp(-(l_c - l_r)^2 / 2 sigma^2) * min(g_c, g_r) . g_r / (|g_c| |g_r|)``, averaged
    over n, where g are term frequencies times ``log N - log df`` over the N images' references and sigma = 6. The
    frequencies come from the images given, so the score of a part of a benchmark means nothing: of one image it is 0.
    The length l is, as in the COCO evaluation's code, the number of bigrams.

    Args:
        candidates: Tokens of one caption per image.
        references: Tokens of the references of each.

    Raises:
        ValueError: If the numbers differ, there are none, or an image has no reference.
    """
    if len(candidates) != len(references) or not candidates:
        raise ValueError(
            f"CIDEr-D: expected references for one or more captions, got {len(candidates)} captions and "
            f"references of {len(references)}"
        )
    missing = next((place for place, own in enumerate(references) if not own), None)
    if missing is not None:
        raise ValueError(f"CIDEr-D: expected at least one reference of caption {missing}, got none")
    num_images = len(candidates)
    counts = np.array([len(own) for own in references])
    sentences = [*candidates, *(reference for own in references for reference in own)]
    image_of = np.concatenate([np.arange(num_images), np.repeat(np.arange(num_images), counts)])
    lengths = np.array([len(sentence) for sentence in sentences])
    bigrams = np.maximum(lengths - 1, 0)
    gap = bigrams[num_images:] - bigrams[image_of[num_images:]]
    penalty = np.exp(-(gap.astype(np.float64) ** 2) / (2 * SIGMA**2))
    totals = np.zeros(num_images)
    for owner, gram in _ngrams(sentences, lengths):
        totals += np.bincount(
            image_of[num_images:], _similarities(owner, gram, image_of, num_images) * penalty, minlength=num_images
        )
    return 10 * totals / NUM_ORDERS / counts


def _similarities(
    owner: NDArray[np.int64], gram: NDArray[np.int64], image_of: NDArray[np.int64], num_images: int
) -> NDArray[np.float64]:
    """Clipped cosine of every reference with its image's caption, for n-grams of one order.

    Args:
        owner: Sentence of each n-gram; captions come first.
        gram: Number of each n-gram.
        image_of: Image of each sentence.
        num_images: Number of images.
    """
    num_grams = int(gram.max(initial=-1)) + 1
    num_references = len(image_of) - num_images
    if not num_grams:
        return np.zeros(num_references)
    keys, frequencies = np.unique(owner * num_grams + gram, return_counts=True)
    sentence, which = keys // num_grams, keys % num_grams
    is_reference = sentence >= num_images
    seen = np.unique(image_of[sentence[is_reference]] * num_grams + which[is_reference])
    document_frequency = np.bincount(seen % num_grams, minlength=num_grams)
    weights = frequencies * (np.log(num_images) - np.log(np.maximum(document_frequency, 1)))[which]
    norms = np.sqrt(np.bincount(sentence, weights**2, minlength=len(image_of)))
    # A caption's sentence number is its image's, so its keys are those that its references look for.
    own_keys, own_weights = keys[~is_reference], weights[~is_reference]
    wanted = image_of[sentence[is_reference]] * num_grams + which[is_reference]
    place = np.minimum(np.searchsorted(own_keys, wanted), max(len(own_keys) - 1, 0))
    found = own_keys[place] == wanted if len(own_keys) else np.zeros(len(wanted), dtype=bool)
    theirs = weights[is_reference][found]
    products = np.minimum(own_weights[place[found]], theirs) * theirs
    dots = np.bincount(sentence[is_reference][found] - num_images, products, minlength=num_references)
    scale = norms[image_of[num_images:]] * norms[num_images:]
    return np.divide(dots, scale, out=np.zeros(num_references), where=scale != 0)


def _ngrams(
    sentences: Sequence[Tokens], lengths: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(sentence, number) of all n-grams, per order."""
    vocabulary: dict[str, int] = {}
    flat = np.fromiter(
        (vocabulary.setdefault(token, len(vocabulary)) for sentence in sentences for token in sentence),
        np.int64,
        int(lengths.sum()),
    )
    owner = np.repeat(np.arange(len(sentences)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat))  # tokens from here to the sentence's end
    grams, found = flat, []
    for order in range(1, NUM_ORDERS + 1):
        starts = np.flatnonzero(left >= order)
        if order > 1:
            longer = np.full(len(flat), -1)
            pairs = grams[starts] * max(len(vocabulary), 1) + flat[starts + order - 1]
            longer[starts] = np.unique(pairs, return_inverse=True)[1]
            grams = longer
        found.append((owner[starts], grams[starts]))
    return found
