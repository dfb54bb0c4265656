"""8. The text tower

Token ids become one vector for each text, which tells the decoder what to look for.

    input_ids (P,T), whole numbers                       P texts of T tokens
        |
        |   each id's row of w["NAME.embeddings.token_embedding.weight"]     (vocabulary,D)
        |   plus row t of    w["NAME.embeddings.position_embedding.weight"]  (T or more,D)
        v
    x (P,T,D)
        |   encoder (step 6), "NAME.encoder", with a mask; take x after the last block
        |   layer norm "NAME.final_layer_norm"
        v
    x (P,T,D)
        |   of each text, the token at the first end token: only it has seen the whole text
        v
      (P,D)
        |   linear "clip.text_projection"
        v
      (P,projection)

The mask is (P,1,T,T), True where token t may see token s: s is not after t, and s is no padding,
that is, attention_mask[p, s] is not 0.

    start  a  ring  end  padding         token s ->
      1    1   1     1     0             t  [ T  F  F  F  F ]
                     ^                   |  [ T  T  F  F  F ]
                     |                   v  [ T  T  T  F  F ]
                 read here                  [ T  T  T  T  F ]
                                            [ T  T  T  T  F ]

The padding of some texts is more end tokens: the first counts. In old configs `eos` is 2, which is
not the end token's id: there, the end token is the highest id of the text.
"""

import numpy as np

from clipseg_np.pico import encoder, layer_norm, linear


def text_tower(input_ids, attention_mask, w, config):
    """(P,T), (P,T) -> (P,projection)"""
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    eos = config.get("eos_token_id", 49407)
    raise NotImplementedError
