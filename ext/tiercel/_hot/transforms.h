/* transforms.h - what happens to a row before a model and to its raw outputs after it.
 *
 * Formulas, operand types and order are those of the source library named at each kind: the answers must be equal, so
 * "equivalent" algebra is not good enough. Nothing here allocates, fails or keeps state.
 */
#ifndef TIERCEL_TRANSFORMS_H
#define TIERCEL_TRANSFORMS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* ---- before: elementwise steps on a float32 row (onnxruntime's arithmetic, all float32) ---- */

enum {
    TC_IMPUTE_NAN = 0,      /* NaN becomes a[j] */
    TC_IMPUTE_VALUE = 1,    /* b[j] becomes a[j] */
    TC_SCALE = 2,           /* (x - a[j]) * b[j] */
    TC_NORMALIZE_MAX = 3,
    TC_NORMALIZE_L1 = 4,
    TC_NORMALIZE_L2 = 5,
    TC_ZERO_IS_NAN = 6,     /* LightGBM's zero_as_missing: |x| <= 1e-35 becomes NaN where a[j] != 0 */
    TC_ADD = 7,             /* x + a[j] */
    TC_MULTIPLY = 8,        /* x * a[j] */
    TC_DIVIDE = 9,          /* x / a[j] */
    TC_STEP_KINDS = 10
};

typedef struct {
    int32_t kind;
    const float* a;         /* n_features values each; borrowed from the scorer */
    const float* b;
} tc_step;

static inline void tc_apply_step(const tc_step* step, float* row, Py_ssize_t n) {
    const float* a = step->a;
    const float* b = step->b;
    Py_ssize_t j;
    float total;
    switch (step->kind) {
    case TC_IMPUTE_NAN:
        for (j = 0; j < n; j++) row[j] = row[j] != row[j] ? a[j] : row[j];
        break;
    case TC_IMPUTE_VALUE:
        for (j = 0; j < n; j++) row[j] = row[j] == b[j] ? a[j] : row[j];
        break;
    case TC_SCALE:
        for (j = 0; j < n; j++) row[j] = (row[j] - a[j]) * b[j];
        break;
    case TC_NORMALIZE_MAX:
        total = -3.402823466e+38f;
        for (j = 0; j < n; j++) total = total < row[j] ? row[j] : total;
        if (total != 0.0f) for (j = 0; j < n; j++) row[j] = row[j] / total;
        break;
    case TC_NORMALIZE_L1:
        total = 0.0f;
        for (j = 0; j < n; j++) total += fabsf(row[j]);
        if (total != 0.0f) for (j = 0; j < n; j++) row[j] = row[j] / total;
        break;
    case TC_NORMALIZE_L2:
        total = 0.0f;
        for (j = 0; j < n; j++) total += row[j] * row[j];
        if (total != 0.0f) {
            for (j = 0; j < n; j++) {
                float square = row[j] * row[j] / total;
                row[j] = row[j] < 0 ? -sqrtf(square) : sqrtf(square);
            }
        }
        break;
    case TC_ZERO_IS_NAN:
        for (j = 0; j < n; j++) row[j] = (a[j] != 0.0f && fabsf(row[j]) <= 1e-35f) ? NAN : row[j];
        break;
    case TC_ADD:
        for (j = 0; j < n; j++) row[j] = row[j] + a[j];
        break;
    case TC_MULTIPLY:
        for (j = 0; j < n; j++) row[j] = row[j] * a[j];
        break;
    default: /* TC_DIVIDE */
        for (j = 0; j < n; j++) row[j] = row[j] / a[j];
        break;
    }
}

/* ---- after: raw outputs to scores ---- */

enum {
    TC_IDENTITY = 0,
    TC_SIGMOID_F64 = 1,         /* LightGBM: 1 / (1 + exp(-scale * x)), double */
    TC_SOFTMAX_F64 = 2,         /* LightGBM, double */
    TC_EXP_F64 = 3,             /* LightGBM poisson, gamma, tweedie */
    TC_SIGNED_SQUARE_F64 = 4,   /* LightGBM reg_sqrt */
    TC_LOG1P_EXP_F64 = 5,       /* LightGBM cross_entropy_lambda */
    TC_SIGMOID_XGB = 6,         /* XGBoost, float32 */
    TC_SOFTMAX_XGB = 7,
    TC_EXP_XGB = 8,
    TC_SIGMOID_ORT = 9,         /* onnxruntime LOGISTIC, float32, each output on its own */
    TC_SOFTMAX_ORT = 10,
    TC_SOFTMAX_ZERO_ORT = 11,
    TC_PROBIT_ORT = 12,
    TC_SIGMOID_MLAS = 13,       /* onnxruntime LinearClassifier: 1 / (1 + exp(-x)), float32 up to its own polynomial */
    TC_POST_KINDS = 14
};

static inline float tc_sigmoid_ort(float x) {
    float v = 1.0f / (1.0f + expf(-fabsf(x)));
    return x < 0 ? 1.0f - v : v;
}

static inline float tc_probit_ort(float score) {
    float x = 2.0f * score - 1.0f;
    float sign = x < 0 ? -1.0f : 1.0f;
    x = (1.0f - x) * (1.0f + x);
    float log_x = logf(x);
    float v = 2.0f / (3.14159f * 0.147f) + 0.5f * log_x;
    float v2 = 1.0f / 0.147f * log_x;
    float v3 = -v + sqrtf(v * v - v2);
    return 1.41421356f * (sign * sqrtf(v3));
}

/* In place over the n raw outputs of one row. float32 kinds read and write float32 values held in doubles. */
static inline void tc_transform(int32_t kind, double scale, double* x, Py_ssize_t n) {
    Py_ssize_t k;
    switch (kind) {
    case TC_SIGMOID_F64:
        for (k = 0; k < n; k++) x[k] = 1.0 / (1.0 + exp(-scale * x[k]));
        break;
    case TC_SOFTMAX_F64: {
        double largest = x[0], total = 0.0;
        for (k = 1; k < n; k++) largest = largest < x[k] ? x[k] : largest;
        for (k = 0; k < n; k++) { x[k] = exp(x[k] - largest); total += x[k]; }
        for (k = 0; k < n; k++) x[k] /= total;
        break;
    }
    case TC_EXP_F64:
        for (k = 0; k < n; k++) x[k] = exp(x[k]);
        break;
    case TC_SIGNED_SQUARE_F64:
        for (k = 0; k < n; k++) x[k] = (double)((x[k] > 0) - (x[k] < 0)) * x[k] * x[k];
        break;
    case TC_LOG1P_EXP_F64:
        for (k = 0; k < n; k++) x[k] = log1p(exp(x[k]));
        break;
    case TC_SIGMOID_XGB:
        for (k = 0; k < n; k++) {
            float minus = -(float)x[k];
            float clipped = minus < 88.7f ? minus : 88.7f;
            x[k] = (double)(1.0f / (expf(clipped) + 1.0f + 1e-16f));
        }
        break;
    case TC_SOFTMAX_XGB: {
        float largest = (float)x[0];
        double total = 0.0;
        for (k = 1; k < n; k++) largest = largest < (float)x[k] ? (float)x[k] : largest;
        for (k = 0; k < n; k++) { float e = expf((float)x[k] - largest); x[k] = e; total += e; }
        for (k = 0; k < n; k++) x[k] = (double)((float)x[k] / (float)total);
        break;
    }
    case TC_EXP_XGB:
        for (k = 0; k < n; k++) x[k] = (double)expf((float)x[k]);
        break;
    case TC_SIGMOID_ORT:
        for (k = 0; k < n; k++) x[k] = (double)tc_sigmoid_ort((float)x[k]);
        break;
    case TC_SOFTMAX_ORT:
    case TC_SOFTMAX_ZERO_ORT: {
        float largest = -3.402823466e+38f, total = 0.0f;
        for (k = 0; k < n; k++) largest = (float)x[k] > largest ? (float)x[k] : largest;
        float at_zero = expf(-largest);
        for (k = 0; k < n; k++) {
            float value = (float)x[k];
            if (kind == TC_SOFTMAX_ORT || value > 0.0000001f || value < -0.0000001f) {
                value = expf(value - largest);
                total += value;
            } else {
                value *= at_zero;
            }
            x[k] = value;
        }
        for (k = 0; k < n; k++) x[k] = (double)((float)x[k] / total);
        break;
    }
    case TC_PROBIT_ORT:
        for (k = 0; k < n; k++) x[k] = (double)tc_probit_ort((float)x[k]);
        break;
    case TC_SIGMOID_MLAS:
        for (k = 0; k < n; k++) x[k] = (double)(float)(1.0 / (1.0 + exp(-x[k])));
        break;
    default: /* TC_IDENTITY */
        break;
    }
}

/* The last step of some classifiers: outputs divided by their sum (onnxruntime Normalizer L1 in float32). */
static inline void tc_normalize_scores(double* x, Py_ssize_t n) {
    float total = 0.0f;
    for (Py_ssize_t k = 0; k < n; k++) total += fabsf((float)x[k]);
    if (total != 0.0f) for (Py_ssize_t k = 0; k < n; k++) x[k] = (double)((float)x[k] / total);
}

#endif
