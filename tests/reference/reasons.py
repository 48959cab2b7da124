"""Reasons by the words of the policy: the slow and obvious twin of the compiled form."""

from __future__ import annotations

import math

UNIT = 1_000_000_000


def contributions_by_code(policy, features, row, phi):
    """{code: (features that count towards the reason in this row, contribution)} of reasons that have a feature of the model."""
    of_feature = {}
    members = {}
    for reason in policy.reasons:
        for name in reason.features:
            of_feature[name] = reason
    for at, name in enumerate(features):
        if name in policy.untold:
            continue
        reason = of_feature[name]
        present, missing = reason.wording.code, reason.wording.code
        if reason.missing is not None:
            missing = reason.missing.code
        elif policy.missing is not None:
            missing = policy.missing.code
        for code in {present, missing}:
            members.setdefault(code, [[], 0.0])
        told = members[missing if math.isnan(row[at]) else present]
        told[0].append(name)
        told[1] += phi[at]
    return members


def is_finite(phi, expected):
    """Whether nothing that can be added up of these is infinite or NaN."""
    size = abs(expected)
    for value in phi:
        size += abs(value)
    return math.isfinite(size)


def choose(policy, features, row, phi, expected, output, locale):
    """The reasons that are told of one row, as the reply has them; None where a contribution is not finite."""
    if not is_finite(phi, expected):
        return None

    def adverse(contribution):
        way = policy.adverse if isinstance(policy.adverse, str) else dict(policy.adverse)[output]
        return {"higher": max(contribution, 0.0), "lower": max(-contribution, 0.0), "either": abs(contribution)}[way]

    texts = {policy.insufficient.code: policy.insufficient.text(locale)}
    for wording in [each for reason in policy.reasons for each in (reason.wording, reason.missing)] + [policy.missing]:
        if wording is not None:
            texts[wording.code] = wording.text(locale)
    found = contributions_by_code(policy, features, row, phi)
    total = 0.0
    for at, name in enumerate(features):
        if name in policy.untold:
            total += adverse(phi[at])
    for code in sorted(found):
        total += adverse(found[code][1])
    size = abs(expected)
    for value in phi:
        size += abs(value)
    ranked = []
    if total * UNIT > size:
        for code in sorted(found):
            share = int(adverse(found[code][1]) / total * UNIT + 0.5)
            if share >= max(1, round(policy.minimum_share * UNIT)):
                ranked.append((-share, code))
    ranked.sort()
    told = [(code, *found[code]) for _, code in ranked[: policy.k]] or [(policy.insufficient.code, [], 0.0)]
    return [
        {"code": code, "text": texts[code], "features": names, "contribution": contribution}
        for code, names, contribution in told
    ]


def members_of_reply(policy, features, rows, phi, expected, output, *, locale, single, full, errors, facts):
    """What `ReasonForm.write` writes, as a dict."""
    told = [
        choose(policy, features, row, values, expected, output, locale) for row, values in zip(rows, phi, strict=True)
    ]
    why = "a contribution is not a finite number"
    if told and all(each is None for each in told):
        return {"explanation": {"method": "none", "why": why}}
    said = {
        "method": facts["method"], "kind": facts["kind"], "scale": facts["scale"], "output": output, "expected": expected,
        "reference": facts["reference"], "policy": policy.digest,
    }  # fmt: skip
    if None in told:
        said["why"] = why

    def by_feature(table):
        return [
            None if one is None else dict(zip(features, values, strict=True))
            for one, values in zip(told, table, strict=True)
        ]

    if full:
        listed = by_feature(phi)
        said["contributions"] = listed[0] if single else listed
    if full and errors is not None:
        listed = by_feature(errors)
        said["standard_error"] = listed[0] if single else listed
    return {"reasons": told[0] if single else told, "explanation": said}
