"""Who computes rows: `base` (the contract), `local` (threads and one engine)."""
