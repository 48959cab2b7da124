"""The files of a version that its explanations follow from: made when it is registered, read when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tiercel.errors import ArtifactCorruptError, ReasonPolicyError
from tiercel.explain.policy import default_policy
from tiercel.explain.policy_file import parse_policy
from tiercel.explain.reference_set import REFERENCE_SET_FILE, Origin, ReferenceSet, draw_reference_set

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from tiercel.explain.policy import ReasonPolicy
    from tiercel.settings import ExplainSettings
    from tiercel.types import Signature

#: The policy's name among a version's artifacts: the file that was handed over, byte for byte.
POLICY_FILE: Final = "reasons.toml"
#: Golden rows that registering makes up (`tiercel.models.preparing`), and a size that no real value has.
_N_MADE_UP: Final = 64
_EXTREME: Final = 1e30


@dataclass(frozen=True)
class ExplanationFiles:
    """What the explanations of a version need beside its model.

    Attributes:
        policy: its own, or the default one, as the project's settings want it.
        reference: None for versions that were registered without any rows to draw from.
        why_no_reference: what to say then; else empty.
    """

    policy: ReasonPolicy
    reference: ReferenceSet | None
    why_no_reference: str = ""

    @property
    def reference_rows(self) -> NDArray[np.float32] | None:
        """float32 (n, n_features)."""
        return None if self.reference is None else self.reference.rows

    @property
    def reference_digest(self) -> str | None:
        """Of the reference set."""
        return None if self.reference is None else self.reference.digest


def make_explanation_files(
    signature: Signature,
    *,
    policy: bytes | None,
    rows: NDArray[np.float32] | None,
    origin: Origin = "training",
    also_known: Iterable[str] = (),
    where: str = POLICY_FILE,
) -> dict[str, bytes]:
    """The files to register a version with.

    Args:
        signature: the model's.
        policy: a policy's file; None: the version has none, and its features are its reasons.
        rows: float32 (n, n_features) to draw the reference set from, if there are any.
        origin: what they are.
        also_known: features that the policy may speak of though the model does not take them.
        where: names the policy in messages.

    Raises:
        ReasonPolicyError: the policy is wrong, or does not fit the model.
        SchemaMismatchError: rows of another width.
    """
    files = {}
    if policy is not None:
        parse_policy(policy, where=where).check(signature, also_known=also_known, where=where)
        files[POLICY_FILE] = policy
    drawn = None if rows is None else draw_reference_set(rows, signature, origin)
    if drawn is not None:
        files[REFERENCE_SET_FILE] = drawn.to_bytes()
    return files


def are_made_up(golden_rows: NDArray[np.float32]) -> bool:
    """Whether golden rows are not anybody's: registering makes 64 of them where none are given, full of extremes.

    Versions that were registered with rows since there are reference sets have one of those, so this is about older ones.
    """
    with np.errstate(invalid="ignore"):
        return len(golden_rows) == _N_MADE_UP or bool((np.abs(golden_rows) >= _EXTREME).any())


def policy_of(artifacts: Mapping[str, bytes], signature: Signature, *, owner: str = "the version") -> ReasonPolicy:
    """A version's own reason policy, or the default one, without what settings change about it.

    Raises:
        ArtifactCorruptError, ReasonPolicyError: as `load_explanation_files`.
    """
    data = artifacts.get(POLICY_FILE)
    if data is None:
        return default_policy(signature)
    where = f"{POLICY_FILE} of {owner}"
    try:
        policy = parse_policy(data, where=where)
    except ReasonPolicyError as error:  # it was checked when it was registered
        raise ArtifactCorruptError(f"{error} It was registered with another content, or by another tiercel.") from error
    policy.check(signature, also_known=None, where=where)
    return policy


def load_explanation_files(
    artifacts: Mapping[str, bytes],
    signature: Signature,
    settings: ExplainSettings | None = None,
    *,
    golden_rows: NDArray[np.float32] | None = None,
    owner: str = "the version",
) -> ExplanationFiles:
    """What a server needs to explain a version.

    Args:
        artifacts: the version's files; others are ignored.
        signature: the model's.
        settings: [models.NAME.explain] of the project: k and locale instead of the policy's.
        golden_rows: float32 (n, n_features): what a version without a reference set is explained against, unless they are
            rows that were made up to look for trouble (`are_made_up`): nobody is like those.
        owner: names the version in messages.

    Raises:
        ArtifactCorruptError: a file is there and is not what was registered.
        SchemaMismatchError: the reference set is of other features than the model.
        ReasonPolicyError: the policy does not fit the model, or has no texts in the locale that settings name.
    """
    policy = policy_of(artifacts, signature, owner=owner)
    if settings is not None:
        policy = policy.with_settings(k=settings.k, locale=settings.locale)
    data = artifacts.get(REFERENCE_SET_FILE)
    reference = None
    if data is not None:
        reference = ReferenceSet.from_bytes(data)
        reference.check(signature)
    elif golden_rows is not None and not are_made_up(golden_rows):
        reference = draw_reference_set(golden_rows, signature, "golden")
    why = (
        ""
        if reference is not None
        else f"no reference set: {owner} was registered without training rows. Register it with its training set, or "
        "with reference_rows, for contributions against the people it was trained on"
    )
    return ExplanationFiles(policy, reference, why)
