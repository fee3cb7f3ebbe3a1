"""Plain technical English: pages, help, messages and docstrings avoid the words of the list, which names a better one."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from conftest import ROOT

import precompute
from precompute.cli import cli

# Each entry: a regular expression, bounded by words and in any case, and the words to write instead.
WORDS = {
    # the verb for what a program prints
    r"(is|are|was|were|be|been) (also )?told": "reported, printed",
    r"is said|are said|be said|as said|said in": "reported, described, given",
    r"say so|says so|said so|saying so": "reported, or the message itself",
    r"says nothing|say nothing of": "has no effect, is independent of",
    r"speaks? of": "refers to",
    r"tells? (bytes|what|which|whether|how|no|a)": "reports",
    r"told apart|tell apart|tell \w+ apart|cannot be told|can be told|told from": "no significant difference; identified",
    # comparing
    r"held against|holds? (it|them|each \w+|\w+ rows?) against": "compared with",
    r"sets? \w+( \w+)? beside|stands? beside|beside which": "compares with, next to",
    r"\w+ beside a paper's": "a score to compare with a paper",
    r"beside (other work|processes|them|it|that|this|each|its|the|a|an|h5py|scikit-learn\S*)": "next to, with, compared with",
    # skipping and choosing
    r"not taken|never taken|is taken for|are taken for": "skipped, never counted as",
    r"let go|lets go": "released",
    r"such as (it is|they are)": "unchanged",
    # nouns in place of clauses
    r"what is (\w+ )?(stored|computed|measured|trained|compared|drawn|done|left|kept|shown|there|missing|needed|proposed|refused|tried|said)": (
        "the noun: the stored values, the comparison, ..."
    ),
    r"what it (takes|costs|is|does|gives|means|holds)": "the noun: cost, effect, contents",
    r"what (lies|stands) \w+": "the noun: the layers behind, the values before",
    r"what (goes|went|comes|came) (in|into|out|through)": "the input, the output",
    r"what enters": "the input of",
    r"what (was|were) (trained|asked|chosen|given|made|seen|finished|found)": "the noun: the trained parameters, ...",
    r"what has (changed|been)": "the changes",
    r"what to (take|do)": "the noun: the next step",
    r"what they (are|mean|give|hold)": "the noun",
    # being in a place
    r"(it|they|which|that|there|figures|results|settings|files?|folders?|rows?|names?|scores?) stands?": "is, are",
    r"stands? (in|at|on|under|behind|before|for|above|below|where)": "is in, is written in, means",
    r"(lies|lie) (in|at|on|under|behind|before|above|below|where|beyond|outside|beside|there)": "is in, are in",
    r"lain|lying (in|at|on)": "is in",
    # owning
    r"of (your|one's|its|their|our|his|somebody's) own": "your own, its own, custom",
    r"(can|is|are|may) (\w+ )?(to )?be had": "is available",
    r"anybody's|somebody else|nobody knows": "another user's, unknown",
    # word order and connectives of other languages
    r"in (the )?place of": "instead of",
    r"in their place": "instead",
    r"but for (the|a|an|its|one|their|rounding|\w+ing)": "except",
    r"of which (each|none|any|all|one|some|every)": "each of which, and none of them",
    r"be it": "whether",
    r"so that it be|lest|thereby|henceforth|hence|thence|whence|thither|hither|naught|aught|whilst|amongst|heed(s|ed)?": (
        "plain connectives: therefore, so, while, among, respects"
    ),
    r"by hand of": "by",
    r"whoever|whatever (it|one) (is|may)|whosoever": "anyone who, any",
    r"dear(er)?": "expensive",
    r"unasked": "by default, without an option",
    r"at hand": "available, installed",
    r"for want of": "without",
    r"without end|for ever": "forever, endless",
    # doing
    r"asked for|asks? for": "requested, requires",
    r"mend(s|ed|ing)?": "repair, fix",
    r"(goes|go|went|going) on (from|where|with|by|there|as)": "resumes",
    r"under way": "running, in progress",
    r"in flight": "current",
    r"in mid-run": "during the run",
    r"begins? anew": "starts anew",
    r"taken (over|along|as it is)": "copied, included",
    r"take(s|n)? the place": "replaces",
    r"brings? (it|them|the file|a file|\w+) up to date": "updates",
    r"hand(s|ed)? (it |them )?(on|out|over)": "passes, returns",
    r"thrown? away": "discarded",
    r"c[ao]me along": "are included",
    r"go(es)? together": "can be combined",
    r"cut short": "truncated, ended early",
    r"flatter(s|ed|ing|y)?": "is optimistic, too good",
    r"others made|somebody else made": "imported",
    r"puts? together": "assembles",
    r"ways out": "options",
    r"know(s)? nothing (of|but)|knows no": "has no, ignores",
    r"does? as well": "works too",
    r"promis(e|es|ed)": "guarantees, claims",
    r"walk(s|ed|ing)?": "iterates over, traverses",
}
# Uses that are good English although an entry matches them: the text around the match, and the reason.
ALLOWED = {
    "stands for": "an abbreviation stands for a phrase",
    "header promises": "the field's phrase for a header that claims a length",
}
