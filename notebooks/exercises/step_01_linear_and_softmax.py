"""1. Linear and softmax

A network is arithmetic with learned numbers. `w` is a dictionary with all of them: arrays by name.
A layer has a name, too, and its arrays begin with it: "NAME.weight" and "NAME.bias", in Python
w[f"{name}.weight"] and w[f"{name}.bias"].

    x  (..., in)                 one vector of `in` numbers for each token; ... are any other axes
        |
        |   w["NAME.weight"]  (out, in)    each row makes one of the outputs
        |   w["NAME.bias"]    (out)        added at the end; some layers have none
        v
    y  (..., out)                y[..., o] = sum over i of x[..., i] * weight[o, i],  + bias[o]

Softmax turns any numbers into weights: positive, and each row sums to 1. A row is the last axis.

    x = [ 1.0   2.0   3.0 ]      e^x = [ 2.7   7.4   20.1 ], which sum to 30.2
        |
        v
    y = [ 0.09  0.24  0.67 ]     e^x divided by that sum

e^1000 is too large for a computer. But if a number m is taken from all of a row, its softmax stays
the same: choose m so that nothing is too large.
"""

import numpy as np


def linear(x, w, name):
    """(...,in) -> (...,out). Without "NAME.bias" in w, nothing is added."""
    raise NotImplementedError


def softmax(x):
    """Weights along the last axis, in the shape of x."""
    raise NotImplementedError
