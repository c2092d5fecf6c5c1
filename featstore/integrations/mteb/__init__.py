"""mteb with a cache: `CachedEncoder` is an mteb model whose audio embeddings are kept in a store.

Each clip of a call is hashed (`calls`), the clips that the store lacks are encoded and committed in parts, and the
vectors of all clips are read from the store (`recipe_cache`). The model is an encoder of featstore or an mteb model
(`models`); in both, a vector depends on its clip and its recipe only.
"""

from featstore.integrations.mteb.cached_encoder import CachedEncoder

__all__ = ["CachedEncoder"]
