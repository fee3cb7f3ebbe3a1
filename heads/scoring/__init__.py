"""How good a head is: `scores`, `metrics`, `bootstrap`, `paired`, `calibration`, `temperature`."""
