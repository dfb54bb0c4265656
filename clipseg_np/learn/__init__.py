"""How it learns: data, a cache of features, an optimizer, and the loops."""
