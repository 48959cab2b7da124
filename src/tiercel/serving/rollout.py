"""Which arm answers: the champion, or the challenger for its share of the entities.

The unit of assignment is the entity, not the request: whoever is scored twice is scored by the same model, so that nobody
sees two answers for one state of the world, and outcomes that come days later belong to one arm.

An entity's **position** is a number from 0 to 2**64 - 1: BLAKE2b (RFC 7693) with an 8-byte digest, read as a little-endian
integer, personalised with `tiercel.arm`, over

    length of the model's name (4 bytes, little-endian) | length of the salt (4 bytes) | name | salt | entity

where `entity` is the canonical bytes of `serving/entity_key.py`. It depends on nothing else: not on the process, the
platform, the time, or who serves. The challenger answers positions below `weight * 2**64`, so that

- an entity stays in its arm as long as the weight stays;
- a larger weight moves entities from the champion to the challenger, and none back; a smaller one the reverse;
- two models divide the same entities independently of each other, because the model's name is part of the hash.

The salt is empty unless an experiment wants other entities than the one before it.
"""

from __future__ import annotations

import functools
import math
import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from tiercel.serving.entity_key import features_key, key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Arm: TypeAlias = Literal["champion", "challenger"]
CHAMPION_ARM: Final = "champion"
CHALLENGER_ARM: Final = "challenger"

_POSITIONS = 2.0**64
_LENGTHS = struct.Struct("<II")


def arm_of(model: str, entity_key: bytes | None, weight: float, salt: str = "") -> Arm:
    """The arm that answers for an entity.

    Args:
        model: the registered model's name.
        entity_key: of `assignment_key`; None: nobody to be faithful to, so the champion.
        weight: share of the entities that the challenger answers, 0 to 1.
        salt: of the experiment.
    """
    if weight <= 0 or entity_key is None:
        return CHAMPION_ARM
    # Scaling by a power of two is exact, so that no weight maps to a larger bound than a larger weight does.
    return CHALLENGER_ARM if position_of(model, entity_key, salt) < int(weight * _POSITIONS) else CHAMPION_ARM


def position_of(model: str, entity_key: bytes, salt: str = "") -> int:
    """Where an entity stands among all of a model's: 0 to 2**64 - 1, uniformly, the same for ever."""
    digest = blake2b(_prefix(model, salt) + entity_key, digest_size=8, person=b"tiercel.arm").digest()
    return int.from_bytes(digest, "little")


def assignment_key(entities: Mapping[str, Any], features: Mapping[str, Any]) -> bytes | None:
    """What decides the arm of a whole question.

    The entity of the **first row**. A reply names one version and one arm, and its rows are one decision of whoever
    asked (a basket, a list to rank), so they must be scored by one model; splitting them would also cost two passes where
    one was planned. Looking at all rows would not be fairer, only slower. The consequence: an entity may be answered by
    one arm alone and by the other in somebody's list, so analyses must take the arm from the journal, not recompute it.

    Without entities: the first row's request features. A client that repeats a question (a retry, a page that is loaded
    again) then gets the same answer, which drawing a number for each request would not give it. The price is that a
    question which makes up a tenth of the traffic moves as one: shares are of distinct questions.

    Returns:
        None: neither can be read. What is wrong is said when it is scored.
    """
    return key_of(entities) if entities else features_key(features)


def is_finite(scores: Iterable[Any]) -> bool:
    """Whether every score is a number: one per row, or a list of one per class."""
    return all(
        all(map(math.isfinite, score)) if isinstance(score, list | tuple) else math.isfinite(score) for score in scores
    )


@functools.lru_cache(maxsize=256)
def _prefix(model: str, salt: str) -> bytes:
    name, grain = model.encode(), salt.encode()
    return _LENGTHS.pack(len(name), len(grain)) + name + grain
