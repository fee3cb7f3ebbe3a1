"""What of this machine helps or stops an extraction: devices, packages, engines, folders, weights."""

from __future__ import annotations

from precompute.diagnosis.finding import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding"]
