"""How near features of timm's networks are to timm's own loop, on real photos and for networks of many families.

python scripts/check_timm.py FOLDER PHOTOS [--count 100] [--networks NAME,...]

FOLDER: a folder as timm saves it, with its classifier. For `--count` photos below PHOTOS: the relative L2 error of the
features against timm's transform, decoder (Pillow) and network, over all photos and of the worst one, and how many are
classified alike by its classifier; the same for the photos as PNG, which both decode with Pillow. Then for networks
with random weights: layer, width and error against `forward_head(forward_features(x), pre_logits=True)`.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import timm as timm_library
import torch
from PIL import Image

from precompute import load_backbone
from precompute.backbones.load import Backbone

timm: Any = timm_library  # without types of its own

NETWORKS = (
    *("resnet18", "efficientnet_b0", "mobilenetv3_small_050", "regnetx_002", "convnext_atto", "densenet121"),
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s"),
    *("xcit_nano_12_p16_224", "mobilevit_xxs", "hiera_tiny_224", "mixer_s32_224", "eva02_tiny_patch14_224"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    options = parser.parse_args()
    print(f"timm {timm.__version__}, torch {torch.__version__}")
    with torch.inference_mode():
        _photos(options.folder, options.photos, options.count)
        for name in filter(None, options.networks.split(",")):
            _network(name)


def _photos(folder: str, photos: Path, count: int) -> None:
    theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs), is_training=False)
    ours = load_backbone(f"timm:{folder}")
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    paths = paths[:: max(1, len(paths) // count)][:count]
    for kind in ("JPEG", "PNG"):
        given, expected, grey = [], [], 0.0
        for path in paths:
            picture = Image.open(path).convert("RGB")
            image = pixels(picture)[None]
            expected.append(theirs.forward_head(theirs.forward_features(image), pre_logits=True)[0])
            (host,) = ours.preprocess.host(path.read_bytes() if kind == "JPEG" else _as_png(picture))
            given.append(_features(ours, host))
            grey = max(grey, _grey_levels(theirs, image, host))
        ours_all, theirs_all = torch.stack(given), torch.stack(expected)
        errors = (ours_all - theirs_all).norm(dim=1) / theirs_all.norm(dim=1)
        classifier = theirs.get_classifier()
        alike = classifier(ours_all).argmax(1) == classifier(theirs_all).argmax(1)
        print(
            f"{len(paths)} photos as {kind}: relative L2 {(ours_all - theirs_all).norm() / theirs_all.norm():.1e}, "
            f"median photo {errors.median():.1e}, worst {errors.max():.1e}; at most {grey:.0f} grey levels apart; same "
            f"top-1 {int(alike.sum())} of {len(paths)}"
        )


def _features(ours: Backbone, host: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = ours.body()(host[None])[0][0]
    return features


def _grey_levels(theirs: Any, image: torch.Tensor, host: torch.Tensor) -> float:
    config = timm.data.resolve_model_data_config(theirs)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return float(((image[0] * std + mean) * 255 - host.permute(2, 0, 1)).abs().max().round())


def _as_png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _network(name: str) -> None:
    ours = load_backbone(f"timm:{name}", weights="random:1")
    theirs: Any = timm.create_model(name).eval()  # with its classifier
    theirs.load_state_dict(ours.network.state_dict(), strict=False)
    (example,) = ours.preprocess.example()
    images = torch.rand(2, 3, *example.shape[:2], generator=torch.Generator().manual_seed(1))
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    (given,) = ours.module(images)
    error = float((given - expected).norm() / expected.norm())
    width = getattr(theirs, "head_hidden_size", theirs.num_features)
    (tap,) = ours.taps
    right = "right" if tap.shape == (width,) and given.shape == expected.shape and error < 1e-4 else "WRONG"
    blocks = ours.family.blocks(ours.network)
    print(f"{name}: {tap.layer} {tap.shape}, timm says {width}, relative L2 {error:.0e}, {len(blocks)} blocks: {right}")


if __name__ == "__main__":
    main()
