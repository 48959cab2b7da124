"""Transforms of raw outputs in plain NumPy, in the source library's precision but not in its exp()."""

from __future__ import annotations

import numpy as np

from tiercel.models.ir import Post


def transform(post: Post, scale: float, raw: np.ndarray, *, normalize: bool = False) -> np.ndarray:
    """Scores of one row of raw outputs; equal to the compiled ones up to the last places of exp and log."""
    with np.errstate(all="ignore"):
        scores = _transform(post, scale, raw)
        total = np.abs(scores).sum()
        return scores / total if normalize and total else scores


def _transform(post, scale, x):
    if post is Post.SIGMOID_F64:
        return 1 / (1 + np.exp(-scale * x))
    if post in (Post.SIGMOID_XGB, Post.SIGMOID_ORT, Post.SIGMOID_MLAS):
        return 1 / (1 + np.exp(-x))
    if post in (Post.SOFTMAX_F64, Post.SOFTMAX_XGB, Post.SOFTMAX_ORT):
        e = np.exp(x - x.max())
        return e / e.sum()
    if post is Post.SOFTMAX_ZERO_ORT:
        e = np.where(np.abs(x) > 1e-7, np.exp(x - x.max()), x * np.exp(-x.max()))
        total = e[np.abs(x) > 1e-7].sum()
        return e / total
    if post in (Post.EXP_F64, Post.EXP_XGB):
        return np.exp(x)
    if post is Post.SIGNED_SQUARE_F64:
        return np.sign(x) * x * x
    if post is Post.LOG1P_EXP_F64:
        return np.log1p(np.exp(x))
    if post is Post.PROBIT_ORT:
        # Winitzki's approximation of the inverse error function, with onnxruntime's constants.
        y = 2 * x - 1
        log = np.log((1 - y) * (1 + y))
        v = 2 / (3.14159 * 0.147) + 0.5 * log
        return 1.41421356 * np.where(y < 0, -1, 1) * np.sqrt(-v + np.sqrt(v * v - log / 0.147))
    return x
