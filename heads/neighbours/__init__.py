"""Heads by distance: `knn`, `centroid`."""
