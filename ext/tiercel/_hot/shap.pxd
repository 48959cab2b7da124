# shap.pxd - a tree ensemble as an Explainer: exact Shapley values of its margins.
#
# Owns   : its layout and tables (NumPy arrays kept in _arrays), made once in __init__, then immutable.
# Lends  : nothing.
# GIL    : explain_row, explain_rows and expected need none and never raise; EXPLAIN_NO_MEMORY is possible only when
#          scratch must be allocated (thousands of inner nodes or features, a block of rows).
# Threads: safe; all scratch memory belongs to the call.
from tiercel._hot.explainer cimport Explainer
from tiercel._hot.shap_kernel cimport tc_shap
from tiercel._hot.steps cimport Steps


cdef class ForestExplainer(Explainer):
    cdef tc_shap _shap
    cdef Steps _steps
    cdef const double* _expected       # n_raw, into _arrays
    cdef dict _arrays                  # what _shap points into
    cdef readonly Py_ssize_t n_trees
    cdef readonly Py_ssize_t n_units   # subtrees and single leaves that are added one by one
    cdef readonly Py_ssize_t n_alone   # leaves among them that have no table
    cdef readonly Py_ssize_t table_bytes
    cdef readonly Py_ssize_t alone_bytes   # of what the leaves without tables need
    cdef readonly Py_ssize_t longest   # most different features on one path
