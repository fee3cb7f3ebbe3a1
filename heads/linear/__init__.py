"""Logistic and ridge heads, their `solver`, and the `path` of C."""
