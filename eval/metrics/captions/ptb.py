"""Tokens of captions as the COCO caption evaluation makes them, without Java.

The official evaluation (https://arxiv.org/abs/1504.00325) runs Stanford's Penn Treebank tokeniser (CoreNLP 3.4.1,
``-preserveLines -lowerCase``) and drops punctuation. :func:`tokenize` follows its rules on English captions; it is no
complete port, and what is measured of their agreement stands in ``tests/eval/metrics/goldens``.
"""

from __future__ import annotations

import re
from functools import lru_cache

PROTOCOL = "PTB-like tokens (Python; not Stanford's Java tokeniser), lower case, punctuation dropped"

PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""What the official evaluation drops. It does so after lower-casing, so its bracket tokens stay, as ``-lrb-``."""

_CHARACTERS = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201b": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"',
        "\u00ab": '"', "\u00bb": '"', "\u2013": " -- ", "\u2014": " -- ", "\u2015": " -- ", "\u2026": " ... ",
        "\u00a0": " ", "\u20ac": "$", "\u00a3": "#", "\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4",
        "\u2153": "1/3", "\u2154": "2/3", "\u00ad": None, "\u200b": None,
    }
)  # fmt: skip

_ABBREVIATIONS = (
    "mr mrs ms drs dr prof profs sens sen reps rep attys atty lt col gen messrs govs gov adm rev maj sgt cpl pvt capt "
    "st ste ave pres lieut hon brig comdr pfc spc supts? det jan feb mar apr jun jul aug sept? oct nov dec mon tues? "
    "wed thu thurs fri jr sr bros inc ltd corp cos? plc esq bldg vs etc al dept univ mt ft tel ph blvd rd est cf assn "
    "mfg ariz calif colo conn dak fla ga ind kan ky md mich minn mo mont neb nev okla penn tenn va vt wis wyo sq intl "
    "natl ext"
).split()
"""Words that keep their full stop everywhere."""
_BEFORE_NUMBERS = ("nos?", "figs?", "prop", "op", "pp", "ca")
"""Words that keep it before a number."""

_TOKEN = re.compile(
    rf"""
    (?P<keep>
        (?:https?|ftp)://[^\s<>"'()]*[^\s<>"'().,;:!?]
      | www\.[^\s<>"'()]*[^\s<>"'().,;:!?]
      | [a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+
      | [@\#][a-z_]\w*
      | </?[a-z!?][^<>]*>
      | (?:[a-z]\.){{2,}}(?!\w)|ph\.d\.|[a-z]+\.(?=,)
      | (?<![\w'])(?:{"|".join(_ABBREVIATIONS)}|[a-z])\.(?!\w)
      | (?<![\w'])(?:{"|".join(_BEFORE_NUMBERS)})\.(?=\s*\d)
      | '(?:em|cause|n'|\d\ds)(?!\w)|'t(?=is\b|was\b)
      | \d+:\d\d(?=[ap]\.?m\b)
      | \d+\s\d/\d(?!\w)
      | (?<![\w.])[-+]?\d+(?:[.,:/-]\d+)+(?!\w)
      | (?<![\w.])[-+]\d+(?!\w)
      | \.\d+
    )
  | (?P<word>[^\W_](?:[^\W_]|[-_&/](?=\w)|'(?=[^\W\d_])|[.,](?=\d)(?<=\d.))*)
  | (?P<ellipsis>\.\.\.+|\.\ \.\ \.)
  | (?P<dashes>--+)
  | (?P<repeated>[?!]{{2,}}|\*\*+|~~+|__+|\#\#+|<<+|>>+|\|\|+)
  | (?P<quote>``|''|["'`])
  | (?P<other>\S)
    """,
    re.VERBOSE,
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CONTRACTION = re.compile(r"(.+?)(n't|'s|'m|'d|'re|'ve|'ll)$")
_JOINED = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
    "lemme": ("lem", "me"), "gimme": ("gim", "me"), "y'all": ("y'", "all"),
}  # fmt: skip


@lru_cache(maxsize=1 << 17)
def tokenize(caption: str) -> tuple[str, ...]:
    """Lower-case tokens of a caption, punctuation dropped."""
    tokens: list[str] = []
    for match in _TOKEN.finditer(caption.translate(_CHARACTERS).lower()):
        text = match.group()
        kind = match.lastgroup
        if kind == "word":
            tokens.extend(_split_word(text))
        elif kind in ("keep", "repeated"):
            tokens.append(text.replace(" ", "\u00a0"))
        elif kind == "other" and text not in PUNCTUATION:
            tokens.append(_BRACKETS.get(text, text))
    return tuple(tokens)


def _split_word(word: str) -> list[str]:
    ends: list[str] = []
    while match := _CONTRACTION.match(word):
        word, end = match.groups()
        ends.append(end)
    return [*_JOINED.get(word, (word,)), *reversed(ends)]
