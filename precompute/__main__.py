"""`python -m precompute` is the console script."""

from __future__ import annotations

from precompute.cli import main

if __name__ == "__main__":
    main()
