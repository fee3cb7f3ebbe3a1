"""The attentive probe: a few learned queries that say which positions of an image count."""
