"""A name becomes a frozen network with taps: `load`, `families`, `layers`, `layout`, `weights`."""

from precompute.backbones._torchvision import import_torchvision

import_torchvision()  # before any module of this package does
