"""What the part of a network that stands still gives, computed once and read in the place of images."""

from __future__ import annotations

from torch import Tensor

from cl_runner.backbones.clip import CLIPClassifier
from cl_runner.backbones.network import Network
from cl_runner.backbones.prefix import Cut
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.training.kept import Batches, FeatureLoader, Kept, Table
from cl_runner.training.lane import Lane, LaneLoader, ShuffledBatches
from cl_runner.training.prefix import PROBE, find_cut

TRAINING, VALIDATION, TESTS = "training", "validation", "tests"  # what features are kept for


class Tower(Cut):
    """The vision tower of CLIP as a prefix: its networks know features from images by themselves."""

    def __init__(self, network: Network) -> None:
        self.network, self.name, self.key = network, "visual", ("visual", ())

    def run(self, x: Tensor) -> Tensor:
        """Image features (B, d), float32."""
        assert isinstance(self.network, Network)
        return self.network.features(x)

    def mark(self, values: Tensor) -> Tensor:
        """Features as they are."""
        return values

    def tensors(self) -> list[Tensor]:
        """Those of the tower."""
        assert isinstance(self.network.backbone, CLIPClassifier)
        return self.network.backbone.vision_parameters()

    def is_still(self) -> bool:
        """Whether nothing in the tower is open."""
        assert isinstance(self.network.backbone, CLIPClassifier)
        return not any(item.requires_grad for item in self.network.backbone.visual.parameters())


class FeatureBank:
    """The output of a network's frozen prefix, by sample, in the place of images.

    In a task the prefix is everything before the deepest cut that `find_cut` accepts; of a prompted network without
    sets per task it is the vision tower. Where images are not augmented and a task goes over its data more than once,
    training reads features; validation reads them wherever there is a prefix; test images, which are the same after
    every task, where the prefix is the same for every task. Tensors are watched through their versions, so that
    features of a prefix that has changed are dropped.

    What is kept takes at most ``limit`` bytes on the device, training first; what does not fit is computed each time.
    Features of training samples are computed in batches of the training's size, so that results are bit for bit those
    of training on images wherever the kernels' results do not depend on which samples share a batch; those of a last,
    smaller batch may differ in their last bits.

    Args:
        network: of images.
        lane: serves them.
        limit: bytes.
        cuts: whether to look for a cut; else only CLIP's vision tower counts.

    Attributes:
        computed: samples that went through the prefix alone, to be kept.
    """

    def __init__(self, network: Network, lane: Lane, limit: int, *, cuts: bool) -> None:
        self.network, self.lane, self.limit, self.cuts = network, lane, limit, cuts
        self.tower = Tower(network) if network.prompted and not network.per_task else None
        self.computed = 0
        self._kept: dict[str, Kept] = {}
        self._found: dict[str, tuple[int, Cut | None]] = {}

    @staticmethod
    def of(network: TaskNetwork, lane: Lane, limit: int, *, cuts: bool) -> FeatureBank | None:
        """A bank, where there may be something to keep."""
        if not isinstance(network, Network) or not limit:
            return None
        tower = network.prompted and not network.per_task
        return FeatureBank(network, lane, limit, cuts=cuts) if cuts or tower else None

    @property
    def nbytes(self) -> int:
        """What is kept at present, in bytes."""
        return sum(item.nbytes for item in self._kept.values())

    def training(
        self, ids: Tensor, batch_size: int, iterations: int | None = None, epochs: int = 1
    ) -> FeatureLoader | None:
        """Shuffled batches of features; None where the images themselves are needed, or each is seen only once."""
        self._end_of_training()
        seen = epochs * len(ids) if iterations is None else iterations * batch_size
        if self.lane.augmentation.active or seen <= len(ids):
            return None
        cut = self._training_cut(ids)
        kept = None if cut is None else Table(self, cut, ids, batch_size)
        if kept is None or not kept.capacity:
            return None
        self._kept[TRAINING] = kept
        return FeatureLoader(self.lane, ShuffledBatches(ids, batch_size, self.lane.generator), kept, iterations)

    def evaluation(self, ids: Tensor, batch_size: int) -> LaneLoader:
        """Batches in order: of features where they can be kept, else of images."""
        what = TESTS if self.network.learning is None else VALIDATION
        if what == TESTS:
            self._end_of_training()
        cut = self.tower if self.tower is not None else self._evaluation_cut(what, ids)
        if cut is None:
            return self.lane.evaluation(ids, batch_size)
        kept = self._kept.get(what)
        if not isinstance(kept, Batches) or kept.cut.key != cut.key:
            kept = self._kept[what] = Batches(self, cut)
        return FeatureLoader(self.lane, list(ids.split(batch_size)), kept)

    def _end_of_training(self) -> None:
        """What is kept for a task is of no use after it."""
        self._kept.pop(TRAINING, None)
        self._kept.pop(VALIDATION, None)

    @property
    def room(self) -> int:
        """Bytes that are free."""
        return self.limit - self.nbytes

    def make_room(self, size: int) -> int:
        """Bytes that training may take of the ``size`` it wants: test features give way."""
        if size > self.room:
            self._kept.pop(TESTS, None)
        return self.room

    def images(self, ids: Tensor) -> Tensor:
        """Images of samples as the network sees them, not augmented."""
        return next(iter(self.lane.evaluation(ids, len(ids))))[0]

    def _training_cut(self, ids: Tensor) -> Cut | None:
        if self.tower is not None and self.tower.is_still():
            return self.tower
        if not self.cuts:
            return None
        return find_cut(self.network, self.images(ids[:PROBE]), learning=True)

    def _evaluation_cut(self, what: str, ids: Tensor) -> Cut | None:
        """Where to cut, found once a phase: before the first task nothing says yet what will move."""
        phase = self.network.phase
        found, cut = self._found.get(what, (0, None))
        if self.cuts and phase != found:
            cut = find_cut(self.network, self.images(ids[:PROBE]), learning=False)
            self._found[what] = (phase, cut)
        return cut
