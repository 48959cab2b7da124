"""Explanations behind replies; see explained.pxd for the contract. Owner: tiercel._hot.plan."""

import json

import msgpack

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.math cimport fabs, fmax, isfinite
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from tiercel._hot.clock cimport monotonic_ns
from tiercel._hot.explainer cimport EXPLAIN_OK, Explainer
from tiercel._hot.payload cimport BODY_JSON
from tiercel._hot.scorer cimport SCORE_OK

# How far contributions may be from adding up to the margin, relative to the largest of the numbers that are added.
cdef double ADDITIVITY = 1e-6

cdef enum:
    STACK_MARGINS = 32

# By WhyNone; the first two are said by others.
cdef tuple WHYS = (
    "",
    "",
    "no model answered: this is an earlier score or a default",
    "the contributions do not add up to the model's margin within one part in a million",
    "there was no time in the request's budget, and without a journal it cannot be explained later",
    "there was no memory",
    "the explainer failed; the server's log has the reason",
)
cdef tuple _KEPT = tuple([own_words(why) for why in WHYS])


cdef tuple own_words(str why):
    """`"explanation": {"method": "none", "why": ...}` as a member of a reply: (JSON, msgpack)."""
    value = {"method": "none", "why": why}
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    packed = msgpack.packb("explanation") + msgpack.packb(json.loads(text))
    return b'"explanation":' + text, packed


cdef Text WHY_TEXTS[2][N_WHYS]
for _why in range(N_WHYS):
    for _kind in range(2):
        WHY_TEXTS[_kind][_why].data = PyBytes_AS_STRING(<bytes>(<tuple>_KEPT[_why])[_kind])
        WHY_TEXTS[_kind][_why].size = PyBytes_GET_SIZE(<bytes>(<tuple>_KEPT[_why])[_kind])


cdef void forget(Explained* explained) noexcept nogil:
    free(explained.phi)
    free(explained.standard_error)
    explained.phi = explained.standard_error = NULL
    explained.method = EXPLAINED_NOT


cdef class Explanations:
    """How one plan explains.

    Args:
        n_features, n_outputs: of the plan's model.
        explainer: of `tiercel.models.explaining`, or None.
        form: the `ReasonForm` of who asks for no other; None only without an explainer.
        why: why there is no explainer.
        cost_us: (of a call, of each of its rows) as measured, in microseconds; None: not measured.
        margins: a compiled scorer of the margins that `explainer` explains, to check it by; None: it is not checked.
    """

    def __init__(
        self, Py_ssize_t n_features, Py_ssize_t n_outputs, explainer=None, ReasonForm form=None, str why="", *, cost_us=None,
        Scorer margins=None,
    ):
        if explainer is not None and form is None:
            raise ValueError("Expected a form for the reasons beside an explainer")
        self.n_features, self.n_outputs = n_features, n_outputs
        self.explainer, self.form = explainer, form
        self.why = "" if explainer is not None else why or "this model's version has no explainer"
        compiled = None if explainer is None else explainer.compiled
        self._compiled, self._has_compiled = compiled, compiled is not None
        self._margins, self._has_margins = margins, margins is not None
        self.is_inline = explainer is None or self._has_compiled
        if self._has_compiled and self._compiled.n_features != n_features:
            raise ValueError(f"Expected an explainer of {n_features} features, got {self._compiled.n_features}")
        if form is not None and form.n_features != n_features:
            raise ValueError(f"Expected a form of {n_features} features, got {form.n_features}")
        if self._has_compiled and margins is not None and (
            margins.n_features != n_features or margins.n_outputs != self._compiled.n_raw
        ):
            raise ValueError(f"Expected {self._compiled.n_raw} margins of {n_features} features, got {margins.n_outputs}")
        if cost_us is not None:
            self._call_ns, self._row_ns = [int(1000 * each) for each in cost_us]
        self._why_texts = own_words(self.why)
        for kind, text in enumerate(self._why_texts):
            self._whys[kind].data, self._whys[kind].size = PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)

    def need_us(self, Py_ssize_t n_rows=1):
        """What explaining so many rows takes, as measured, in microseconds; 0: nothing, or not measured."""
        return self.need_ns(n_rows) / 1000.0

    cdef int64_t need_ns(self, Py_ssize_t n_rows) noexcept nogil:
        return self._call_ns + n_rows * self._row_ns

    cdef void explain(
        self, const feature_t* rows, const score_t* scores, Py_ssize_t n_rows, Explained* out
    ) noexcept nogil:
        cdef Py_ssize_t row
        cdef int64_t began_ns = monotonic_ns()
        out.phi = out.standard_error = NULL
        out.method, out.why, out.took_ns = EXPLAINED_NONE, WHY_PLAN, 0
        if not self._has_compiled:
            return
        out.phi = <double*>malloc(<size_t>(n_rows * max(self.n_features, 1)) * sizeof(double))
        if out.phi is NULL:
            out.why = WHY_NO_MEMORY
            return
        out.method, out.output = EXPLAINED_EXACT, self._output_of(scores, n_rows)
        out.expected = self._compiled.expected(out.output)
        for row in range(n_rows):
            if self._compiled.explain_row(
                rows + row * self.n_features, out.output, out.phi + row * self.n_features
            ) != EXPLAIN_OK:
                out.method, out.why = EXPLAINED_NONE, WHY_NO_MEMORY
                break
        if out.method == EXPLAINED_EXACT and not self._adds_up(rows, n_rows, out):
            out.method, out.why = EXPLAINED_NONE, WHY_ADDITIVITY
        out.took_ns = monotonic_ns() - began_ns

    cdef Py_ssize_t _output_of(self, const score_t* scores, Py_ssize_t n_rows) noexcept nogil:
        """Of several classes the one with the highest score, over all rows; the first of equal ones."""
        cdef Py_ssize_t row, k, best = 0
        cdef double total, most = 0
        if self._compiled.n_raw < 2 or self._compiled.n_raw != self.n_outputs:
            return 0
        for k in range(self.n_outputs):
            total = 0
            for row in range(n_rows):
                total += scores[row * self.n_outputs + k]
            if k == 0 or total > most:
                best, most = k, total
        return best

    cdef bint _adds_up(self, const feature_t* rows, Py_ssize_t n_rows, const Explained* explained) noexcept nogil:
        """Whether the expected margin and the contributions of each row are its margin."""
        cdef double few[STACK_MARGINS]
        cdef double* margins = few
        cdef const double* phi
        cdef double total, scale, margin
        cdef Py_ssize_t row, i
        cdef bint is_right = True
        if not self._has_margins:
            return True
        if self._margins.n_outputs > STACK_MARGINS:
            margins = <double*>malloc(<size_t>self._margins.n_outputs * sizeof(double))
            if margins is NULL:
                return False
        for row in range(n_rows):
            if self._margins.score_rows(rows + row * self.n_features, 1, self.n_features, margins) != SCORE_OK:
                is_right = False
                break
            margin = margins[explained.output]
            phi = explained.phi + row * self.n_features
            total, scale = explained.expected, fmax(fabs(explained.expected), fabs(margin))
            for i in range(self.n_features):
                total += phi[i]
                scale = fmax(scale, fabs(phi[i]))
            # Of infinite inputs, or overflowing leaves, the form says that contributions are not finite.
            if isfinite(total) and isfinite(margin) and not fabs(total - margin) <= ADDITIVITY * scale:
                is_right = False
                break
        if margins is not few:
            free(margins)
        return is_right

    cdef Py_ssize_t most_bytes(self, ReasonForm form, const Explained* explained, Py_ssize_t n_rows) noexcept nogil:
        if explained.method == EXPLAINED_NOT:
            return 0
        if explained.method == EXPLAINED_EXACT or explained.method == EXPLAINED_SAMPLED:
            return 64 + form.most_bytes(n_rows, explained.is_full)
        return 2048 + self._whys[0].size + self._whys[1].size

    cdef Py_ssize_t write_into(
        self, ReasonForm form, char* reply, Py_ssize_t length, int kind, const feature_t* rows, Py_ssize_t n_rows, bint single,
        const Explained* explained, const Text* own, const char* id, Py_ssize_t id_size,
    ) noexcept nogil:
        cdef char* at = reply + length
        cdef int n_members = 1
        cdef const Text* text
        if explained.method == EXPLAINED_NOT:
            return length
        if kind == BODY_JSON:       # in place of the brace that ends it
            (at - 1)[0] = 44        # ","
        if explained.method == EXPLAINED_EXACT or explained.method == EXPLAINED_SAMPLED:
            at += form.write_into(
                at, kind, rows, explained.phi, n_rows, single, explained.output, explained.expected, explained.is_full,
                explained.standard_error, &n_members,
            )
        elif explained.method == EXPLAINED_LATER:
            at += form.write_later_into(at, kind, id, id_size)
        else:
            text = &WHY_TEXTS[kind][explained.why]
            if explained.why == WHY_PLAN:
                text = &self._whys[kind]
            elif explained.why == WHY_OWN:
                text = own + kind
            memcpy(at, text.data, <size_t>text.size)
            at += text.size
        if kind == BODY_JSON:
            at[0] = 125             # "}"
            at += 1
        else:
            reply[0] = <char>((<unsigned char>reply[0]) + n_members)
        return at - reply
