"""4. One attention head

Here tokens look at each other. Each has made three vectors of d numbers: a query q (what am I
looking for?), a key k (what have I?), and a value v (what do I say?). A token's result is a mean of
all values, with weights that tell how well each key answers its query.

    q (B,T,d)     k (B,T,d)                     v (B,T,d)
          |        |                                |
     scores (B,T,T):                                |
     scores[b, t, s] = q[b, t] . k[b, s] / sqrt(d)  |         . is the sum of products
             |                                      |
         softmax                                    |
             |                                      |
     weights (B,T,T):  row t sums to 1              |
                                                    |
            token s ->                              |
     token  [ .7  .2  .1 ]                          |
       t    [ .1  .8  .1 ]                          |
       |    [ .3  .3  .4 ]                          |
       v         |                                  |
                 '-----------------.----------------'
                                   |
            y (B,T,d):  y[b, t] = sum over s of weights[b, t, s] * v[b, s]

B is the number of images or texts, T the number of tokens, d is q.shape[-1]. `softmax` is that of
step 1.
"""

import numpy as np

from clipseg_np.pico import softmax


def one_head(q, k, v):
    """(B,T,d), (B,T,d), (B,T,d) -> (B,T,d)"""
    raise NotImplementedError
