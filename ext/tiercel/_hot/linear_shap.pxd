# linear_shap.pxd - a linear model as an Explainer: weight times how far a prepared value is from the reference's mean.
#
# Owns   : its coefficient and step arrays, immutable after __init__.
# Lends  : nothing.
# GIL    : not needed by explain_row; EXPLAIN_NO_MEMORY is possible only above 512 features.
# Threads: safe; all scratch memory belongs to the call.
from tiercel._hot.explainer cimport Explainer
from tiercel._hot.steps cimport Steps


cdef class LinearExplainer(Explainer):
    cdef const double* _weights        # n_raw x n_features, into _arrays
    cdef const double* _mean           # n_features: of the prepared reference
    cdef const double* _expected       # n_raw
    cdef Steps _steps
    cdef dict _arrays                  # what the pointers point into
