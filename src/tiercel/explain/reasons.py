"""From a policy to the compiled forms that choose reasons and write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tiercel._hot.reasons import WHYS, ReasonForm
from tiercel.explain.policy import MAX_K, outputs_of

if TYPE_CHECKING:
    from tiercel.explain.policy import ReasonPolicy, Wording
    from tiercel.types import Signature

__all__ = ["WHYS", "ReasonForm", "ReasonForms", "make_form"]

#: `Presence` of reasons.pxd: when a feature counts towards a reason.
_ALWAYS, _WHEN_PRESENT, _WHEN_MISSING = 0, 1, 2
_NAMES: Final = ("method", "kind", "scale", "reference", "policy")


def make_form(
    policy: ReasonPolicy,
    signature: Signature,
    *,
    locale: str | None = None,
    method: str = "exact",
    kind: str,
    scale: str = "margin",
    reference: str | None,
    k: int | None = None,
) -> ReasonForm:
    """What explanations of a model say in one language.

    Args:
        policy: fits the model (`ReasonPolicy.check`).
        signature: the model's.
        locale: one of the policy's; None: its own.
        method: "exact" or "sampled", of the contributions that it will be given.
        kind: likewise: "interventional", "path_dependent", "linear" or "permutation".
        scale: likewise.
        reference: digest of the reference set they are against; None where there is none.
        k: reasons told at most, as a request asked; None: the policy's number.

    Raises:
        KeyError: the policy has no such locale.
    """
    locale = policy.locale if locale is None else locale
    places = {name: at for at, name in enumerate(signature.features)}
    told: list[tuple[str, str, list[tuple[int, int]]]] = []
    gathered: list[int] = []

    def tell(wording: Wording, members: list[int], presence: int) -> None:
        if members:  # a policy may speak of features that only other models of the service take
            told.append((wording.code, wording.text(locale), [(at, presence) for at in sorted(members)]))

    for reason in policy.reasons:
        members = [places[name] for name in reason.features if name in places]
        apart = reason.missing is not None or policy.missing is not None
        tell(reason.wording, members, _WHEN_PRESENT if apart else _ALWAYS)
        if reason.missing is not None:
            tell(reason.missing, members, _WHEN_MISSING)
        elif apart:
            gathered += members
    if policy.missing is not None:
        tell(policy.missing, gathered, _WHEN_MISSING)
    outputs = outputs_of(signature)
    return ReasonForm(
        signature.features,
        sorted(told),
        sorted((places[name], _ALWAYS) for name in policy.untold if name in places),
        (policy.insufficient.code, policy.insufficient.text(locale)),
        [policy.sign(output) for output in outputs],
        outputs,
        policy.k if k is None else k,
        policy.minimum_share,
        dict(zip(_NAMES, (method, kind, scale, reference, policy.digest), strict=True)),
    )


class ReasonForms:
    """The forms of one model version: one per locale, made at once; one per locale and k as they are asked for.

    Args:
        policy, signature: as `make_form`.
        method, kind, scale, reference: likewise.

    Threads: safe; two that ask for the same new form at once may get two equal ones.
    """

    def __init__(
        self,
        policy: ReasonPolicy,
        signature: Signature,
        *,
        method: str = "exact",
        kind: str,
        scale: str = "margin",
        reference: str | None,
    ) -> None:
        self.policy, self._signature = policy, signature
        self._method, self._kind, self._scale, self._reference = method, kind, scale, reference
        self._forms = {(locale, policy.k): self._make(locale, policy.k) for locale in policy.locales}
        self.default = self._forms[policy.locale, policy.k]

    def form_of(self, locale: str | None = None, k: int | None = None) -> ReasonForm:
        """The form of a request.

        Args:
            locale: a language tag; what there are no texts in gets the policy's own.
            k: reasons told at most, brought into 1 to `MAX_K`; None: the policy's number.
        """
        # There are as many forms at most as locales (32) and numbers (16), whatever requests ask for.
        key = self.policy.choose_locale(locale), self.policy.k if k is None else min(max(k, 1), MAX_K)
        found = self._forms.get(key)
        if found is None:
            found = self._forms[key] = self._make(*key)
        return found

    def _make(self, locale: str, k: int) -> ReasonForm:
        return make_form(
            self.policy,
            self._signature,
            locale=locale,
            k=k,
            method=self._method,
            kind=self._kind,
            scale=self._scale,
            reference=self._reference,
        )
