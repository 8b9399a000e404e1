"""At which rank each text finds its images, and each image its text; exact, with the embeddings read twice, in parts.

Legend, beside that of `types.py`:
    Q  texts, each with one or more images
    P  images of one text
    A  texts with one image alone: the usual case of captions, counted all at once
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

NO_TEXT = -1
"""The text of an image that has none among those asked for: it is one more image in the way of all texts."""
Parts = Callable[[], Iterable[np.ndarray]]
"""Embeddings (n, D) float32 of unit norm, some at a time, in one order each time it is called."""


@dataclass(frozen=True)
class Ranks:
    """Ranks from 1 and average precisions from 0 to 1.

    `first_Q` is the rank of a text's best image, `precision_Q` its average precision over all its images; `text_N` is
    the rank of an image's own text, of the images that have one.
    """

    first_Q: np.ndarray
    precision_Q: np.ndarray
    text_N: np.ndarray


def rank(texts_QD: np.ndarray, text_of_N: np.ndarray, parts: Parts) -> Ranks:
    """Rank images for texts and texts for images by cosine.

    `text_of_N` is the number of each image's text, or NO_TEXT; each text must have an image. Of equal cosines the wrong
    ones come first: a model to which all looks alike finds nothing, where a kinder rule would say that it finds all.
    """
    own_N = _own_cosines(texts_QD, text_of_N, parts)
    of_text = [np.sort(own_N[text_of_N == text]) for text in range(len(texts_QD))]
    before = [np.zeros(len(own_P), np.int64) for own_P in of_text]
    alone_A = np.array([text for text, own_P in enumerate(of_text) if len(own_P) == 1], np.intp)
    several = [(text, own_P) for text, own_P in enumerate(of_text) if len(own_P) > 1]
    before_A, own_A1 = np.zeros(len(alone_A), np.int64), np.array([of_text[text] for text in alone_A]).reshape(-1, 1)
    text_ranks, start = [], 0
    for part_ND in parts():
        here = slice(start, start := start + len(part_ND))
        cosines_QN = texts_QD @ part_ND.T
        text_ranks.append(_text_ranks(cosines_QN, own_N[here], text_of_N[here]))
        before_A += (cosines_QN[alone_A] >= own_A1).sum(axis=1) - np.isin(
            alone_A, text_of_N[here]
        )  # less its own image
        for text, own_P in several:
            wrong_n = cosines_QN[text, text_of_N[here] != text]
            before[text] += _at_least(wrong_n, own_P)
    for text, wrong in zip(alone_A.tolist(), before_A, strict=True):
        before[text][:] = wrong
    ranks = [wrong_P + np.arange(len(wrong_P), 0, -1) for wrong_P in before]
    precisions = [float(np.mean(np.arange(len(ranks_P), 0, -1) / ranks_P)) for ranks_P in ranks]
    return Ranks(np.array([ranks_P[-1] for ranks_P in ranks]), np.array(precisions), np.concatenate(text_ranks))


def _at_least(cosines_N: np.ndarray, own_P: np.ndarray) -> np.ndarray:
    """How many of the cosines are as high as each of a text's own (P,), which are sorted."""
    below_N = np.searchsorted(own_P, cosines_N, side="right")  # how many of its own a cosine reaches
    reached = np.bincount(below_N, minlength=len(own_P) + 1)[1:]
    return reached[::-1].cumsum()[::-1]


def _own_cosines(texts_QD: np.ndarray, text_of_N: np.ndarray, parts: Parts) -> np.ndarray:
    """The cosine (N,) of each image to its own text, from the very products that it will be compared with."""
    own, start = [], 0
    for part_ND in parts():
        text_of_n = text_of_N[start : start + len(part_ND)]
        own.append((texts_QD @ part_ND.T)[text_of_n, np.arange(len(part_ND))])
        start += len(part_ND)
    return np.concatenate(own)


def _text_ranks(cosines_QN: np.ndarray, own_N: np.ndarray, text_of_N: np.ndarray) -> np.ndarray:
    """The rank of its own text for each image that has one."""
    known_N = text_of_N != NO_TEXT
    return (cosines_QN[:, known_N] >= own_N[known_N]).sum(axis=0)
