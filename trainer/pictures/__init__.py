"""From folders of pictures to batches: scan, captions, buckets, batches, latent cache, loader.

Knows nothing of models or adapters; `build` brings them together. `scan`, `headers`, `report`, `captions`, `buckets`
and `batches` never import torch, nor does `decoding`; `pixels`, `masks`, `latent_cache` and `loader` do.
"""
