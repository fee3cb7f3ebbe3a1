"""What the sections say together: how much of the bound a run reaches, and how many times the DataLoader loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from check_gpu.running import Outcome, Row

LEAST_SHARE, LEAST_TIMES = 0.9, 3.0
RUNS = ("precompute processes", "precompute nvjpeg", "precompute threads")


def verdict(found: Mapping[str, Outcome], backbones: Iterable[str]) -> Outcome:
    """For each network the best run beside the smaller of the bare forward pass and decoding on all cores."""
    outcome = Outcome("Verdict")
    if not {"forward", "decode", "end_to_end"} <= set(found):
        outcome.status = "skipped"
        return outcome
    decode = _best(row for row in found["decode"].rows if row["name"] == "processes" or "nvjpeg" in row["name"])
    for name in backbones:
        forward = _best(
            row for row in found["forward"].rows if row["name"] == name and row["way"] == "eager" and row["batch"] >= 8
        )
        runs = {label: f"{name} {label}" for label in RUNS}
        rows = {row["name"]: row for row in found["end_to_end"].rows if row.get("steady_images_per_s")}
        seen = {label: rows[full] for label, full in runs.items() if full in rows}
        if not (decode and forward and seen):
            outcome.skipped.append({"name": name, "why": "one of the three sections has no figure for it"})
            continue
        best = max(seen, key=lambda label: seen[label]["steady_images_per_s"])
        share, times = (
            seen[best]["steady_images_per_s"] / min(decode, forward),
            seen[best].get("times_the_fp32_loop") or 0.0,
        )
        outcome.rows.append(
            {
                "name": name,
                "best": best,
                "images_per_s": seen[best]["steady_images_per_s"],
                "forward": forward,
                "decode": decode,
                "share": round(share, 3),
                "share_wanted": LEAST_SHARE,
                "times_the_fp32_loop": times,
                "times_wanted": LEAST_TIMES,
                "met": "yes" if share >= LEAST_SHARE and times >= LEAST_TIMES else "no",
            }
        )
    return outcome


def _best(rows: Iterable[Row]) -> float:
    return max((row["images_per_s"] for row in rows), default=0.0)
