"""A name becomes a frozen network with taps: `load`, `families`, `layers`, `layout`, `weights`."""
