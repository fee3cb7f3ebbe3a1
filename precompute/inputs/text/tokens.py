"""Texts as tokens, for language models: numbers from a tokenizer.json, padded to one of a few lengths.

A text is padded to the next of `lengths`, whatever its neighbours are, so a row depends on its text alone. The padding
and the truncation that tokenizer.json itself may request are switched off; `max_length` is the one limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from precompute.errors import SampleError, UsageError, WeightsError
from precompute.inputs.base import Inputs, Preprocess
from precompute.inputs.text.decode import text_of
from precompute.inputs.text.options import OPTIONS
from precompute.system import version_of

INSTALL = "pip install 'precompute[hf]'"
LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Tokens that texts are padded to, special ones included, up to `max_length`, which is the last: beyond the first at
most half as many again as there are. TREC's questions have 13.2 on average, of which these make 15.3; 16, 32, ... make
19.2.
"""

MORE = (8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""The same where `max_length` is beyond all of these: no more than MOST_SHAPES."""

PADDED = 8  # texts that stand in for those of a length which was not met
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class TokenPreprocess(Preprocess):
    """`host` gives (T,) int64 numbers of tokens and (T,) int64, 1 for a token and 0 for padding.

    tokenizer: the contents of tokenizer.json · where: its path, for messages · max_length: the most tokens of a text,
    special ones included; what is longer is cut off at its end · longest: the most that the network takes · pad: the
    number that padding has · vocabulary: how many tokens the network knows · lower: texts are made of small letters
    first · prompt: is put in front of each text.

    Raises WeightsError for a tokenizer that fails, UsageError for a `max_length` that the network does not take.
    """

    tokenizer: bytes = field(repr=False)
    where: str
    max_length: int
    longest: int
    pad: int = 0
    vocabulary: int = 2**31
    lower: bool = False
    prompt: str = ""

    modality = "text"

    def __post_init__(self) -> None:
        made = tokenizer_of(self.tokenizer, self.where, lower=self.lower)
        try:
            own = int(made.num_special_tokens_to_add(is_pair=False))
            tried = [*made.encode("a").ids, self.pad]
        except BaseException as error:
            raise _unfit(self.where, error) from error
        if max(tried) >= self.vocabulary:
            raise WeightsError(
                f"{self.where} has the token {max(tried):,}, and its network knows {self.vocabulary:,}.",
                hint="Use a folder saved by the library.",
            )
        if not own < self.max_length <= self.longest:
            raise UsageError(
                f"max_length must lie between {own + 1} and {self.longest:,}, the most that the network takes. Got "
                f"{self.max_length!r} instead.",
                hint="See --max-length.",
            )
        made.enable_truncation(self.max_length)
        object.__setattr__(self, "_limited", made)  # one for all threads: nothing about it changes any more

    @property
    def lengths(self) -> tuple[int, ...]:
        steps = LENGTHS if self.max_length <= LENGTHS[-1] else MORE
        return (*(one for one in steps if one < self.max_length), self.max_length)

    def with_options(self, options: Mapping[str, Any]) -> TokenPreprocess:
        """With some of OPTIONS set otherwise. Raises UsageError for others."""
        if strange := sorted({*options} - {*OPTIONS}):
            raise UsageError(
                f"{' and '.join(strange)} cannot be set for a backbone that takes texts.",
                hint=f"It knows {', '.join(OPTIONS)}.",
            )
        return replace(self, **options)

    def spec(self) -> dict[str, Any]:
        return {
            "tokenizer": sha256(self.tokenizer).hexdigest(),
            "tokenizers": version_of("tokenizers"),
            "max_length": self.max_length,
            "pad": self.pad,
            **({"lower": True} if self.lower else {}),
            **({"prompt": self.prompt} if self.prompt else {}),
        }

    def inputs(self, raw: bytes, digest: bytes | None = None) -> Inputs:
        del digest
        found = self._encoded(raw)
        return Inputs((self._padded(found.ids),), cut=bool(found.overflowing))

    def host(self, raw: bytes, view: int = 0) -> Tensors:
        del view
        return self._padded(self._encoded(raw).ids)

    def _encoded(self, raw: bytes) -> Any:
        text = self.prompt + text_of(raw)
        try:
            found = vars(self)["_limited"].encode(text)
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise SampleError(f"its tokenizer fails: {str(error)[:200]}", reason="UNDECODABLE") from error
        if found.ids and max(found.ids) >= self.vocabulary:
            raise SampleError(
                f"a token {max(found.ids):,}, and the network knows {self.vocabulary:,}", reason="UNDECODABLE"
            )
        return found

    def _padded(self, ids: list[int], length: int | None = None) -> Tensors:
        """length: the next of `lengths`, unless one is given."""
        length = length or next(one for one in self.lengths if one >= len(ids))
        numbers, mask = torch.full((length,), self.pad), torch.zeros(length, dtype=torch.int64)
        numbers[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        mask[: len(ids)] = 1
        return numbers, mask

    def example(self) -> Tensors:
        return self.examples()[0]

    def examples(self) -> tuple[Tensors, ...]:
        return tuple((torch.full((one,), self.pad), torch.ones(one, dtype=torch.int64)) for one in self.lengths)

    def between(self, samples: Sequence[Tensors]) -> list[Tensors]:
        """Of lengths between those of `samples`: texts of the next shorter one, padded further."""
        there: dict[int, list[Tensors]] = {}
        for one in samples:
            there.setdefault(len(one[0]), []).append(one)
        found = []
        for length in self.lengths:
            shorter = max((one for one in there if one < length), default=None)
            if length not in there and shorter is not None and length < max(there):
                found += [self._padded(ids[mask == 1].tolist(), length) for ids, mask in there[shorter][:PADDED]]
        return found

    def tried(self) -> tuple[Tensors, ...]:
        """Two: where features follow the number of tokens they differ by then, and the longest takes seconds."""
        return self.examples()[:2]

    def device(self) -> nn.Module:
        return Passed()


class Passed(nn.Module):
    """Numbers and mask as they are."""

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        return inputs


def tokenizer_of(text: bytes, where: str, *, lower: bool = False) -> Any:
    """The tokenizer that a tokenizer.json describes, without padding and truncation.

    Raises WeightsError where it describes none, UsageError where the library is missing.
    """
    try:
        import tokenizers
        from tokenizers import normalizers
    except ImportError as error:
        raise UsageError(f"A language model needs tokenizers: {error}.", hint=f"Install it: {INSTALL}") from error
    try:
        made: Any = tokenizers.Tokenizer.from_str(text.decode())
    except BaseException as error:
        raise _unfit(where, error) from error
    made.no_padding()
    made.no_truncation()
    if lower:
        own = [made.normalizer] if made.normalizer is not None else []
        made.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return made


def _unfit(where: str, error: BaseException) -> BaseException:
    """What to raise where a tokenizer cannot be made of a file; what is no failure of the library's is raised as is."""
    if not _is_failure(error):
        return error
    return WeightsError(
        f"{where} describes no tokenizer: {str(error)[:200]}.", hint="Use a folder saved by the library."
    )


def _is_failure(error: BaseException) -> bool:
    """Of the library: it raises plain Exception, and where its own code fails what is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
