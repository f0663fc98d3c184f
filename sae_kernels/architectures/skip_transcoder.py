"""`skip_transcoder`: the transcoder whose skip is on unless it is turned off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._base import CoderConfig
from .transcoder import Transcoder, TranscoderConfig


@dataclass(frozen=True)
class SkipTranscoderConfig(TranscoderConfig):
    """As `TranscoderConfig`, with `skip` true by default."""

    skip: bool = True


class SkipTranscoder(Transcoder):
    """ŷ = f W_dec + b_dec + W_skip x: a `Transcoder` under its own name. W_dec and W_skip start at 0.

    Source: arXiv 2501.18823.
    """

    Config: ClassVar[type[CoderConfig]] = SkipTranscoderConfig
    architecture: ClassVar[str] = "skip_transcoder"
