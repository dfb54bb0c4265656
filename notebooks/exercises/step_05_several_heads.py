"""5. Several heads, and a mask

A token looks for several things at once: its D numbers are cut into N heads of d = D // N, and each
head attends for itself. That is step 4, but for one more axis: write it again, with N beside T.
Three linear layers make queries, keys and values of x.

    x (B,T,D)
      |-- linear "NAME.q_proj" --> q (B,T,D)      one token of q, with N = 2 heads:
      |-- linear "NAME.k_proj" --> k (B,T,D)      [ a a a a | b b b b ]
      '-- linear "NAME.v_proj" --> v (B,T,D)       head 0    head 1        (B,T,D) -> (B,T,N,d)

    scores  (B,N,T,T)     for each head; divided by sqrt(d)
       |
       |  the mask:  where it is False, the score becomes the lowest number there is,
       |             np.finfo(x.dtype).min, so that its weight becomes 0
       |             (np.where broadcasts a mask, and takes True; s[~mask] does neither)
       |
    weights (B,N,T,T)     softmax: row t holds how much token t looks at each token s
       |
    heads   (B,T,N,d)     weighted sums of v
       |
    side by side again (B,T,D):  [ a a a a | b b b b ]
       |
    linear "NAME.out_proj" --> (B,T,D)

The mask is True (every token sees every token), or an array of True and False that broadcasts to
(B,N,T,T): in a text, a token sees itself and those before it, and no padding.

    token s ->          the mask of a text of three tokens
    t  [ T  F  F ]
    |  [ T  T  F ]
    v  [ T  T  T ]
"""

import numpy as np

from clipseg_np.pico import linear, softmax


def attention(x, w, name, N, mask=True):
    """(B,T,D) -> (B,T,D)"""
    raise NotImplementedError
