"""The activations of one layer, computed from the images each time they are requested.

Nothing is stored, so every epoch may see other views. What is fixed is which image a row is: a feature file of the same
images says it, with their SHA-256, and an image that has changed since is an error. View 0 is the plain image; view k
follows from the image's bytes and k alone, so that a training can be repeated, and resumed, bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from precompute.backbones.layers import INPUT
from precompute.backbones.load import Backbone
from precompute.cache import status_text
from precompute.engines.base import EngineChoice, Tensors
from precompute.engines.devices import default_batch, make_engine
from precompute.errors import SampleError, SourceError
from precompute.extraction.pipeline import decode_threads
from precompute.extraction.read_ahead import ReadAhead, read_ahead
from precompute.finetuning.activations import Plan, Rows
from precompute.inputs.base import Preprocess
from precompute.sources.base import Source
from precompute.system import cores

MANY_VIEWS = 2**20
"""How many views are requested of an augmentation: so many that an image hardly meets one of them twice."""

WAYS_OUT = (
    "The checkpoint is kept: bring the image back as it was and run the same command again. To continue with other "
    "images, update the feature file (precompute extract) and start anew with --overwrite."
)
STEPS_AHEAD = 2  # of training, whose images may be decoded and wait


class PixelActivations:
    """Images -> the activations of the one layer that `backbone` is cut at, (B, *shape) float32 on `device`.

    source: its rows are those of `digests`, (N, 32) uint8, the SHA-256 that each image must have · preprocess: what
    makes the views, by default that of `backbone`. The frozen part of the network runs in fp32, without gradients, by
    the engine that extraction uses: the same values as in a file of that layer in float32. Used from one thread.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        source: Source,
        digests: NDArray[np.uint8],
        backbone: Backbone,
        *,
        preprocess: Preprocess | None = None,
        device: str = "cpu",
        workers: int | None = None,
    ) -> None:
        self._source, self._digests = source, digests
        self._preprocess = preprocess or backbone.preprocess
        self._workers = workers or cores()
        (tap,) = backbone.taps
        self.shape, self.views = tap.shape, self._preprocess.views
        self._run = _front(backbone, device) if tap.layer == INPUT else _body(backbone, device)
        self._open = contextlib.ExitStack()
        self._open.enter_context(self._preprocess.session())
        self._pool: ThreadPoolExecutor = self._open.enter_context(decode_threads(self._workers))

    def close(self) -> None:
        """End the threads."""
        self._open.close()

    def __len__(self) -> int:
        return len(self._digests)

    @property
    def plain(self) -> PlainPixels:
        """The plain view of every row, as an array that is computed where it is read."""
        return PlainPixels(self)

    def batch(self, rows: Rows, views: Rows) -> torch.Tensor:
        """The activations (B, *shape) of one step. Raises as `batches` does."""
        with contextlib.closing(self.batches([(rows, views)])) as made:
            return next(made)

    def batches(self, plan: Plan) -> Generator[torch.Tensor, None, None]:
        """The activations (B, *shape) of each step of `plan`, in order, with the images of later ones decoded ahead.

        Bounded in memory, whatever the plan. Closing it early leaves nothing behind. Raises SampleError, which names
        the image, where one has changed or cannot be read or decoded any more; SourceError where all of them have gone.
        """
        steps, waiting = iter(plan), deque[list[Future[Tensors]]]()
        try:
            with read_ahead(self._source) as ahead:
                try:
                    while True:
                        while len(waiting) <= STEPS_AHEAD and (step := next(steps, None)) is not None:
                            waiting.append(self._begin(ahead, *step))
                        if not waiting:
                            return
                        samples = [one.result() for one in waiting[0]]
                        waiting.popleft()
                        yield self._run(samples)
                finally:
                    self._source.patient(False)  # what is still being read is not needed any more
                    wait([one for step in waiting for one in step if not one.cancel()])
        finally:
            self._source.patient(True)

    def _begin(self, ahead: ReadAhead, rows: Rows, views: Rows) -> list[Future[Tensors]]:
        pairs = list(zip(rows.tolist(), views.tolist(), strict=True))
        for row, _ in pairs:
            ahead.begin(row)
        return [self._pool.submit(self._read, ahead, row, view) for row, view in pairs]

    def _read(self, ahead: ReadAhead, row: int, view: int) -> Tensors:
        name = self._source.sample_name(row)
        try:
            raw = ahead.read(row)
            if hashlib.sha256(raw.data).digest() != self._digests[row].tobytes():
                raise SampleError(
                    f"{name} has changed since its features were computed.", reason="VANISHED", hint=WAYS_OUT
                )
            return self._preprocess.host(raw.data, view)
        except SampleError as error:
            if error.hint:
                raise
            if error.reason in ("VANISHED", "UNREADABLE") and not self._source.alive():
                raise SourceError(
                    f"The source {self._source.name} disappeared while it was being read.",
                    hint="The checkpoint is kept. Bring the source back and run the same command again.",
                ) from error
            what = f"{name}: {status_text(error.reason)} ({error.message})."
            raise SampleError(what, reason=error.reason, hint=WAYS_OUT) from error


def _front(backbone: Backbone, device: str) -> Callable[[Sequence[Tensors]], torch.Tensor]:
    """Samples as `Preprocess.host` gives them -> the input of the network."""
    front = backbone.preprocess.device().to(device).eval()

    @torch.no_grad()
    def run(samples: Sequence[Tensors]) -> torch.Tensor:
        made: torch.Tensor = front(*(torch.stack(one).to(device) for one in zip(*samples, strict=True)))
        return made

    return run


def _body(backbone: Backbone, device: str) -> Callable[[Sequence[Tensors]], torch.Tensor]:
    """Samples -> what the frozen part of the network makes of them, by torch in fp32."""
    size = default_batch("torch", device, backbone.module)
    choice = EngineChoice("torch", device, "fp32", size)
    engine = make_engine(backbone.module, backbone.preprocess, choice, identity=backbone.identity)

    def run(samples: Sequence[Tensors]) -> torch.Tensor:
        passes = (samples[start : start + size] for start in range(0, len(samples), size))
        return torch.from_numpy(np.concatenate([features for (features,) in engine.map(passes)])).to(device)

    return run


class PlainPixels:
    """The activations of plain images as an array (N, *shape) float32, each of which is computed when it is read."""

    dtype = PixelActivations.dtype

    def __init__(self, activations: PixelActivations, shape: tuple[int, ...] | None = None) -> None:
        self._activations = activations
        self.shape = (len(activations), *activations.shape) if shape is None else shape

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def strides(self) -> tuple[int, ...]:
        """As a whole array would have them."""
        return tuple(self.dtype.itemsize * math.prod(self.shape[axis + 1 :]) for axis in range(self.ndim))

    def reshape(self, *shape: Any) -> PlainPixels:
        """With the values of each row in another shape."""
        wanted: tuple[int, ...] = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        row = math.prod(self.shape[1:])
        known = math.prod(size for size in wanted[1:] if size != -1)
        full = tuple(row // known if size == -1 else size for size in wanted[1:])
        if wanted[0] not in (-1, len(self)) or math.prod(full) != row:
            raise ValueError(f"cannot reshape an array of shape {self.shape} into {wanted}")
        return PlainPixels(self._activations, (len(self), *full))

    def __getitem__(self, chosen: int | slice | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        if isinstance(chosen, int | np.integer):
            one: NDArray[np.float32] = self[np.array([chosen])][0]
            return one
        rows = np.arange(len(self))[chosen]
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        made = self._activations.batch(rows, np.zeros(len(rows), np.int64))
        found: NDArray[np.float32] = made.cpu().contiguous().numpy().reshape(len(rows), *self.shape[1:])
        return found
