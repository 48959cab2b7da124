"""Contributions -> the reasons of a prediction as bytes; see reasons.pxd for the contract. Owner: tiercel.explain.reasons."""

import json

import msgpack

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.math cimport fabs, isfinite, isnan

from tiercel._hot.payload cimport BODY_JSON, BODY_MSGPACK
from tiercel._hot.putting cimport put_byte, put_bytes, put_count, put_float64, put_text
from tiercel._hot.reply cimport NUMBER_BYTES, Text, put_number
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, uint8_t


MOST_REASONS = MAX_K
SHARE_UNIT = 1.0 / <double>SHARES
#: By Absence.
WHYS = (
    "a contribution is not a finite number",
    "there was no memory for the explanation",
    "the explanation could not be computed",
    "the deadline left no time for the explanation",
    "these are more rows than are explained in one call",
)
#: Members of "explanation" that are always there.
FACTS = ("method", "kind", "scale", "output", "expected", "reference", "policy")

cdef enum:
    N_FACTS = 7
    FRAME_BYTES = 256       # of names, brackets and counts


cdef class ReasonForm:
    """What every explanation of one model version in one language says.

    Args:
        features: names in vector order.
        reasons: (code, text, members) in the order of codes, none twice; a member is (index of a feature, Presence).
        excluded: members that are never told, but are part of all that is adverse.
        insufficient: (code, text) of the one reason where there is none.
        signs: by output that can be explained: 1: a higher margin is adverse, -1: a lower one, 0: either.
        outputs: labels of these outputs; None: it has none.
        k: reasons that are told at most, 1 to MOST_REASONS.
        minimum_share: of a reason that is told, 0 to 1.
        facts: "method", "kind", "scale", "reference" and "policy" of the explanation; texts or None.

    Raises:
        ValueError: anything else.
    """

    def __cinit__(
        self, features, reasons, excluded, insufficient, signs, outputs, Py_ssize_t k, double minimum_share, dict facts
    ):
        cdef Py_ssize_t i, at, n_members
        features, reasons, excluded = list(features), list(reasons), list(excluded)
        signs, outputs = list(signs), list(outputs)
        pack = msgpack.packb
        self._kept = []
        if not features:
            raise ValueError("Expected at least one feature")
        codes = [code for code, _, _ in reasons]
        if codes != sorted(set(codes)):
            raise ValueError(f"Expected reasons in the order of their codes, none twice, got {codes}")
        if not 1 <= k <= MAX_K or not 0 <= minimum_share <= 1:
            raise ValueError(f"Expected 1 to {MAX_K} reasons of a share from 0 to 1, got {k} of {minimum_share}")
        if len(signs) != len(outputs) or not signs or not set(signs) <= {-1, 0, 1}:
            raise ValueError(f"Expected -1, 0 or 1 for each of {len(outputs)} outputs, got {signs}")
        if set(facts) != {"method", "kind", "scale", "reference", "policy"}:
            raise ValueError(f"Expected method, kind, scale, reference and policy, got {sorted(facts)}")
        members = [member for _, _, group in reasons for member in group] + excluded
        for feature, presence in members:
            if not 0 <= feature < len(features) or presence not in (ALWAYS, WHEN_PRESENT, WHEN_MISSING):
                raise ValueError(f"Expected one of {len(features)} features and a Presence, got {feature}, {presence}")
        self.n_features, self.n_outputs, self.n_reasons, self.k = len(features), len(outputs), len(reasons), k
        self._minimum = max(1, round(minimum_share * SHARES))
        self._texts = <Text*>PyMem_RawMalloc(
            (6 + 2 * N_ABSENCES + 2 * (self.n_outputs + self.n_reasons + self.n_features)) * sizeof(Text)
        )
        n_members = len(members)
        self._members = <Member*>PyMem_RawMalloc((n_members + 1) * sizeof(Member))
        self._ends = <int32_t*>PyMem_RawMalloc((self.n_reasons + 1) * sizeof(int32_t))
        self._signs = <signed char*>PyMem_RawMalloc(self.n_outputs)
        self._varies = <signed char*>PyMem_RawMalloc(self.n_reasons + 1)
        if (
            self._texts is NULL or self._members is NULL or self._ends is NULL or self._signs is NULL
            or self._varies is NULL
        ):
            raise MemoryError("No memory for the form of reasons")
        for i, (feature, presence) in enumerate(members):
            self._members[i].feature, self._members[i].presence = feature, presence
        at = 0
        for i, (_, _, group) in enumerate(reasons):
            at += len(group)
            self._ends[i] = <int32_t>at
            self._varies[i] = any(presence != ALWAYS for _, presence in group)
        self._excluded, self._n_excluded = self._members + at, n_members - at
        for i, sign in enumerate(signs):
            self._signs[i] = sign

        at = 0
        self._insufficient = self._texts
        nothing = _reason(insufficient[0], insufficient[1], []) | {"contribution": 0.0}
        at = self._keep_all(at, [_json(nothing), pack(nothing)])
        self._tails = self._texts + at
        tail = {"reference": facts["reference"], "policy": facts["policy"]}
        at = self._keep_all(at, [b"," + _json_members(tail), _packed_members(tail)])
        self._whys = self._texts + at
        at = self._keep_all(at, [_json(WHYS[<int>ABSENT_NOT_FINITE]), pack(WHYS[<int>ABSENT_NOT_FINITE])])
        absences = [{"explanation": {"method": "none", "why": why}} for why in WHYS]
        heads = [
            {"method": facts["method"], "kind": facts["kind"], "scale": facts["scale"], "output": output}
            for output in outputs
        ]
        said = [
            (_reason(code, text, [features[index] for index, _ in group]), bool(self._varies[i]))
            for i, (code, text, group) in enumerate(reasons)
        ]
        for kind in (BODY_JSON, BODY_MSGPACK):
            is_json = kind == BODY_JSON
            self._absences[kind] = self._texts + at
            at = self._keep_all(at, [_json_members(each) if is_json else _packed_members(each) for each in absences])
            self._heads[kind] = self._texts + at
            at = self._keep_all(at, [
                _json_members(head) + b',"expected":' if is_json else _packed_members(head) + pack("expected")
                for head in heads
            ])
            self._openings[kind] = self._texts + at
            at = self._keep_all(at, [
                _json_opening(each, varies) if is_json else _packed_opening(each, varies) for each, varies in said
            ])
            self._names[kind] = self._texts + at
            at = self._keep_all(at, [_json(name) + b":" if is_json else pack(name) for name in features])
        self._measure()

    def __dealloc__(self):
        PyMem_RawFree(self._texts)
        PyMem_RawFree(self._members)
        PyMem_RawFree(self._ends)
        PyMem_RawFree(self._signs)
        PyMem_RawFree(self._varies)

    def write(
        self, int kind, const feature_t[:, ::1] rows not None, const double[:, ::1] phi not None, double expected, *,
        bint single=False, Py_ssize_t output=0, bint full=False, const double[:, ::1] standard_error=None,
    ):
        """The members as bytes, and how many they are: the general path's way to write_into().

        Args:
            kind: 0 JSON, 1 msgpack.
            rows: float32 (n, n_features).
            phi: float64 (n, n_features), contributions to the margin of `output`.
            expected: the margin they start from.
            single: one row that was not sent as a list.
            output: which one is explained.
            full: contributions of features too.
            standard_error: float64 (n, n_features) of contributions that were sampled.
        """
        cdef int n_members = 0
        cdef Py_ssize_t n_rows = rows.shape[0], most, size
        cdef const double* errors = NULL
        cdef char* out
        shape = (n_rows, self.n_features)
        if n_rows == 0:
            raise ValueError("Expected at least one row")
        if (rows.shape[0], rows.shape[1]) != shape or (phi.shape[0], phi.shape[1]) != shape:
            raise ValueError(f"Expected rows and contributions of {self.n_features} features each, as many of both")
        if standard_error is not None and (standard_error.shape[0], standard_error.shape[1]) != shape:
            raise ValueError(f"Expected standard errors of {n_rows} rows and {self.n_features} features")
        if kind not in (BODY_JSON, BODY_MSGPACK) or not 0 <= output < self.n_outputs or (single and n_rows != 1):
            raise ValueError(f"Expected JSON or msgpack, one of {self.n_outputs} outputs, and one row where single")
        if standard_error is not None:
            errors = &standard_error[0, 0]
        most = self.most_bytes(n_rows, full)
        out = <char*>PyMem_RawMalloc(most)
        if out is NULL:
            raise MemoryError(f"No memory for the reasons of {n_rows} rows")
        try:
            size = self.write_into(
                out, kind, &rows[0, 0], &phi[0, 0], n_rows, single, output, expected, full,
                errors, &n_members,
            )
            return PyBytes_FromStringAndSize(out, size), n_members
        finally:
            PyMem_RawFree(out)

    def absent(self, int kind, *, str why=None, str id=None):
        """The one member of a prediction without an explanation: because of `why`, or to be fetched under the reply's id."""
        if (why is None) == (id is None) or kind not in (BODY_JSON, BODY_MSGPACK):
            raise ValueError("Expected either a reason for there being no explanation, or the id of the reply")
        if why is not None:
            said = {"explanation": {"method": "none", "why": why}}
        else:
            said = {"explanation": {"method": "later", "href": f"/predictions/{id}/explanation"}}
        return _json_members(said) if kind == BODY_JSON else _packed_members(said)

    def find_absence(self, int kind, int absence):
        """What write_absent_into() writes. For tests."""
        cdef char out[MOST_ABSENT_BYTES]
        if kind not in (BODY_JSON, BODY_MSGPACK) or not 0 <= absence < N_ABSENCES:
            raise ValueError(f"Expected JSON or msgpack and one of {N_ABSENCES} absences")
        return out[:self.write_absent_into(out, kind, absence)]

    def find_later(self, int kind, bytes id):
        """What write_later_into() writes. For tests."""
        cdef char out[MOST_ABSENT_BYTES]
        if kind not in (BODY_JSON, BODY_MSGPACK) or not 16 <= len(id) <= 64:
            raise ValueError("Expected JSON or msgpack and an id of 16 to 64 bytes")
        return out[:self.write_later_into(out, kind, PyBytes_AS_STRING(id), len(id))]

    def most(self, Py_ssize_t n_rows, bint full):
        """most_bytes(). For tests."""
        return self.most_bytes(n_rows, full)

    cdef Py_ssize_t most_bytes(self, Py_ssize_t n_rows, bint full) noexcept nogil:
        return self._constant_bytes + n_rows * (self._full_row_bytes if full else self._row_bytes)

    cdef Py_ssize_t write_into(
        self, char* out, int kind, const feature_t* rows, const double* phi, Py_ssize_t n_rows, bint single,
        Py_ssize_t output, double expected, bint full, const double* standard_error, int* n_members,
    ) noexcept nogil:
        cdef Told told[MAX_K]
        cdef Py_ssize_t r, n_told, n_failed = 0
        cdef char* at = out
        cdef bint is_json = kind == BODY_JSON
        cdef int n_facts
        if is_json:
            at = put_bytes(at, b'"reasons":', 10) if single else put_bytes(at, b'"reasons":[', 11)
        else:
            at = put_bytes(at, b"\xa7reasons", 8)
            if not single:
                at = put_count(at, 0x90, 0xDC, n_rows)
        for r in range(n_rows):
            if r and is_json:
                at = put_byte(at, 0x2C)
            n_told = self.choose(rows + r * self.n_features, phi + r * self.n_features, output, expected, told)
            n_failed += n_told < 0
            at = self._put_reasons(at, kind, rows + r * self.n_features, told, n_told)
        if n_failed == n_rows:
            n_members[0] = 1
            return self.write_absent_into(out, kind, ABSENT_NOT_FINITE)
        n_members[0] = 2
        if is_json:
            at = put_bytes(at, b',"explanation":{', 16) if single else put_bytes(at, b'],"explanation":{', 17)
            at = put_number(put_text(at, self._heads[BODY_JSON] + output), expected)
        else:
            n_facts = N_FACTS + full + (full and standard_error is not NULL) + (n_failed != 0)
            at = put_count(put_bytes(at, b"\xabexplanation", 12), 0x80, 0xDE, n_facts)
            at = put_float64(put_text(at, self._heads[BODY_MSGPACK] + output), expected)
        at = put_text(at, self._tails + kind)
        if n_failed:
            at = put_bytes(at, b',"why":', 7) if is_json else put_bytes(at, b"\xa3why", 4)
            at = put_text(at, self._whys + kind)
        if full:
            at = put_bytes(at, b',"contributions":', 17) if is_json else put_bytes(at, b"\xadcontributions", 14)
            at = self._put_all_values(at, kind, phi, phi, expected, n_rows, single)
        if full and standard_error is not NULL:
            at = put_bytes(at, b',"standard_error":', 18) if is_json else put_bytes(at, b"\xaestandard_error", 15)
            at = self._put_all_values(at, kind, standard_error, phi, expected, n_rows, single)
        if is_json:
            at = put_byte(at, 0x7D)
        return at - out

    cdef Py_ssize_t write_absent_into(self, char* out, int kind, int absence) noexcept nogil:
        return put_text(out, self._absences[kind] + absence) - out

    cdef Py_ssize_t write_later_into(self, char* out, int kind, const char* id, Py_ssize_t id_size) noexcept nogil:
        cdef char* at
        if kind == BODY_JSON:
            at = put_bytes(out, b'"explanation":{"method":"later","href":"/predictions/', 53)
            at = put_bytes(put_bytes(at, id, id_size), b'/explanation"}', 14)
            return at - out
        at = put_bytes(out, b"\xabexplanation\x82\xa6method\xa5later\xa4href\xd9", 32)
        at = put_bytes(put_byte(at, <uint8_t>(25 + id_size)), b"/predictions/", 13)
        return put_bytes(put_bytes(at, id, id_size), b"/explanation", 12) - out

    cdef Py_ssize_t choose(
        self, const feature_t* row, const double* phi, Py_ssize_t output, double expected, Told* told,
    ) noexcept nogil:
        cdef int sign = self._signs[output]
        cdef double contribution, total = 0, size = fabs(expected)
        cdef Py_ssize_t i, place, n = 0
        cdef const Member* member
        cdef int64_t share
        for i in range(self.n_features):
            size += fabs(phi[i])
        if not isfinite(size):      # one of them is not, or their sum: then none of the sums below is safe
            return -1
        for i in range(self._n_excluded):
            member = self._excluded + i
            if counts(member, row):
                total += adverse(sign, phi[member.feature])
        for i in range(self.n_reasons):
            total += adverse(sign, self._contribution(i, row, phi))
        if not total * SHARES > size:
            return 0
        for i in range(self.n_reasons):
            contribution = self._contribution(i, row, phi)
            share = <int64_t>(adverse(sign, contribution) / total * SHARES + 0.5)
            if share < self._minimum or (n == self.k and share <= told[n - 1].share):
                continue
            place = n if n < self.k else n - 1
            n = place + 1
            while place and told[place - 1].share < share:
                told[place] = told[place - 1]
                place -= 1
            told[place].reason, told[place].share, told[place].contribution = i, share, contribution
        return n

    cdef double _contribution(self, Py_ssize_t reason, const feature_t* row, const double* phi) noexcept nogil:
        cdef double total = 0
        cdef Py_ssize_t i
        for i in range(self._ends[reason - 1] if reason else 0, self._ends[reason]):
            if counts(self._members + i, row):
                total += phi[self._members[i].feature]
        return total

    cdef char* _put_reasons(
        self, char* at, int kind, const feature_t* row, const Told* told, Py_ssize_t n_told
    ) noexcept nogil:
        cdef Py_ssize_t i
        if n_told < 0:
            return _put_null(at, kind)
        if kind == BODY_MSGPACK:
            at = put_count(at, 0x90, 0xDC, n_told if n_told else 1)
            for i in range(n_told):
                at = put_float64(self._put_opening(at, BODY_MSGPACK, row, told[i].reason), told[i].contribution)
            return at if n_told else put_text(at, self._insufficient + BODY_MSGPACK)
        at = put_byte(at, 0x5B)
        for i in range(n_told):
            if i:
                at = put_byte(at, 0x2C)
            at = put_number(self._put_opening(at, BODY_JSON, row, told[i].reason), told[i].contribution)
            at = put_byte(at, 0x7D)
        return put_byte(at if n_told else put_text(at, self._insufficient + BODY_JSON), 0x5D)

    cdef char* _put_opening(self, char* at, int kind, const feature_t* row, Py_ssize_t reason) noexcept nogil:
        cdef Py_ssize_t i, n = 0
        cdef Py_ssize_t start = self._ends[reason - 1] if reason else 0, end = self._ends[reason]
        cdef const Text* name
        at = put_text(at, self._openings[kind] + reason)
        if not self._varies[reason]:
            return at
        if kind == BODY_MSGPACK:
            for i in range(start, end):
                n += counts(self._members + i, row)
            at = put_count(at, 0x90, 0xDC, n)
            for i in range(start, end):
                if counts(self._members + i, row):
                    at = put_text(at, self._names[BODY_MSGPACK] + self._members[i].feature)
            return put_bytes(at, b"\xaccontribution", 13)
        for i in range(start, end):
            if counts(self._members + i, row):
                if n:
                    at = put_byte(at, 0x2C)
                name = self._names[BODY_JSON] + self._members[i].feature
                at = put_bytes(at, name.data, name.size - 1)    # without its colon
                n += 1
        return put_bytes(at, b'],"contribution":', 17)

    cdef char* _put_all_values(
        self, char* at, int kind, const double* values, const double* phi, double expected, Py_ssize_t n_rows, bint single
    ) noexcept nogil:
        cdef Py_ssize_t r
        if single:
            return self._put_values(at, kind, values)
        at = put_count(at, 0x90, 0xDC, n_rows) if kind == BODY_MSGPACK else put_byte(at, 0x5B)
        for r in range(n_rows):
            if r and kind == BODY_JSON:
                at = put_byte(at, 0x2C)
            if self._is_finite(phi + r * self.n_features, expected):
                at = self._put_values(at, kind, values + r * self.n_features)
            else:
                at = _put_null(at, kind)
        return at if kind == BODY_MSGPACK else put_byte(at, 0x5D)

    cdef char* _put_values(self, char* at, int kind, const double* values) noexcept nogil:
        cdef Py_ssize_t i
        if kind == BODY_MSGPACK:
            at = put_count(at, 0x80, 0xDE, self.n_features)
            for i in range(self.n_features):
                at = put_float64(put_text(at, self._names[BODY_MSGPACK] + i), values[i])
            return at
        at = put_byte(at, 0x7B)
        for i in range(self.n_features):
            if i:
                at = put_byte(at, 0x2C)
            at = put_number(put_text(at, self._names[BODY_JSON] + i), values[i])
        return put_byte(at, 0x7D)

    cdef bint _is_finite(self, const double* phi, double expected) noexcept nogil:
        cdef double size = fabs(expected)
        cdef Py_ssize_t i
        for i in range(self.n_features):
            size += fabs(phi[i])
        return isfinite(size)

    cdef int _keep(self, Py_ssize_t index, bytes text) except -1:
        self._kept.append(text)
        self._texts[index].data, self._texts[index].size = PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)
        return 0

    cdef Py_ssize_t _keep_all(self, Py_ssize_t at, list texts) except -1:
        for text in texts:
            self._keep(at, text)
            at += 1
        return at

    cdef int _measure(self) except -1:
        """How many bytes rows and the rest may need: of each part the longer of its two formats, of reasons the k longest."""
        cdef Py_ssize_t i, j, names = 0, heads = 0
        openings = []
        for i in range(self.n_reasons):
            sizes = [self._openings[BODY_JSON][i].size, self._openings[BODY_MSGPACK][i].size]
            if self._varies[i]:     # as if all of its features counted; the colon of a name is as long as a comma
                for j in range(self._ends[i - 1] if i else 0, self._ends[i]):
                    sizes[0] += self._names[BODY_JSON][self._members[j].feature].size
                    sizes[1] += self._names[BODY_MSGPACK][self._members[j].feature].size
                sizes[0] += 17      # `],"contribution":`
                sizes[1] += 5 + 13  # the head of a list, "contribution"
            openings.append(max(sizes))
        for i in range(self.n_features):
            names += max(self._names[BODY_JSON][i].size, self._names[BODY_MSGPACK][i].size)
        for i in range(self.n_outputs):
            heads = max(heads, self._heads[BODY_JSON][i].size, self._heads[BODY_MSGPACK][i].size)
        told = sum(sorted(openings)[-self.k:]) + self.k * (NUMBER_BYTES + 2)
        self._row_bytes = 16 + max(told, self._insufficient[BODY_JSON].size, self._insufficient[BODY_MSGPACK].size)
        self._full_row_bytes = self._row_bytes + 2 * (16 + names + self.n_features * (NUMBER_BYTES + 1))
        self._constant_bytes = FRAME_BYTES + MOST_ABSENT_BYTES + heads + max(
            self._tails[BODY_JSON].size, self._tails[BODY_MSGPACK].size
        )
        return 0


cdef inline bint counts(const Member* member, const feature_t* row) noexcept nogil:
    if member.presence == ALWAYS:
        return True
    return isnan(row[member.feature]) == (member.presence == WHEN_MISSING)


cdef inline double adverse(int sign, double contribution) noexcept nogil:
    if sign == 0:
        return fabs(contribution)
    contribution *= sign
    return contribution if contribution > 0 else 0


cdef inline char* _put_null(char* at, int kind) noexcept nogil:
    return put_byte(at, 0xC0) if kind == BODY_MSGPACK else put_bytes(at, b"null", 4)


cdef dict _reason(code, text, features):
    return {"code": code, "text": text, "features": features}


cdef bytes _json_opening(dict reason, bint varies):
    """A reason up to its contribution; or where its features vary up to their list, which is then opened."""
    if varies:
        return _json(reason | {"features": []}).removesuffix(b"]}")
    return b"{" + _json_members(reason) + b',"contribution":'


cdef bytes _packed_opening(dict reason, bint varies):
    """Likewise; the list's head, which counts, is part of the list."""
    if varies:
        return b"\x84" + _packed_members({"code": reason["code"], "text": reason["text"]}) + msgpack.packb("features")
    return b"\x84" + _packed_members(reason) + msgpack.packb("contribution")


cdef bytes _json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


cdef bytes _json_members(dict value):
    return _json(value).removeprefix(b"{").removesuffix(b"}")


cdef bytes _packed_members(dict value):
    return b"".join([msgpack.packb(name) + msgpack.packb(each) for name, each in value.items()])
