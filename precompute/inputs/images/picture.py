"""A decoded picture, upright and in RGB: what the plain view and all others of one image are cut from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precompute.inputs.images.transform import Transform

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class Picture:
    """pixels: (3, H, W) uint8 of a plain JPEG, on the device that decoded it, or in memory that the same thread's next
    picture may overwrite; else Pillow's image · size: (width, height) of a JPEG whose last column or row is only partly
    in the picture.
    """

    pixels: torch.Tensor | Image.Image
    size: tuple[float, float] | None = None

    def plain(self, transform: Transform) -> torch.Tensor:
        """(3, crop, crop) uint8: resized and cropped as `transform` says, in its own memory."""
        import torch
        from torchvision.transforms import functional  # its second kind takes a second to load

        if not isinstance(self.pixels, torch.Tensor):
            return transform.apply_pil(self.pixels)
        if transform.suits_tensor(self.pixels.shape[2], self.pixels.shape[1]):
            return transform.apply_tensor(self.pixels, self.size)
        return transform.apply_pil(functional.to_pil_image(self.pixels.cpu()))

    def whole(self) -> torch.Tensor:
        """(3, H, W) uint8, all pixels, in its own memory."""
        import torch
        from torchvision.transforms import functional

        if isinstance(self.pixels, torch.Tensor):
            return self.pixels.clone(memory_format=torch.contiguous_format).cpu()
        pixels: torch.Tensor = functional.pil_to_tensor(self.pixels)
        return pixels
