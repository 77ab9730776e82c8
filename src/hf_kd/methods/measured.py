"""What methods measure while they work, by name: the `measured` of an eraser and of a record.

Keys that a method leaves out in some situations say so. What `hf_kd.unlearn` measures is the `measured` of its record, and a
method that stopped early has `stopped` there and nothing else.
"""

from __future__ import annotations

from typing import TypedDict


class ProjectionMeasured(TypedDict, total=False):
    """Of a projection.

    Attributes:
        k: Directions removed.
        n_forget: Features of D_f.
        energy_removed: Share of sum ||h||^2 of D_f (centred: of its variance) that lies in the removed directions.
    """

    k: int
    n_forget: int
    energy_removed: float


class ESCMeasured(ProjectionMeasured, total=False):
    """Of ESC.

    Attributes:
        rank_of_forget_features: Numerical rank of Z_f.
        k_of_published_code: floor(d p / 100), where it differs from k.
    """

    rank_of_forget_features: int
    k_of_published_code: int


class LEACEMeasured(TypedDict, total=False):
    """Of LEACE.

    Attributes:
        k: Directions removed.
        n_forget: Features of D_f.
        n_retain: Features of D_r.
        largest_correlation: Largest correlation with being forgotten among all directions, before.
    """

    k: int
    n_forget: int
    n_retain: int
    largest_correlation: float


class PrototypeMeasured(TypedDict, total=False):
    """Of prototype-orthogonal.

    Attributes:
        k: Forgotten prototypes.
        n_forget: Features of D_f.
        remapped_to: The retained class that each forgotten one was written onto; with `remap` only.
    """

    k: int
    n_forget: int
    remapped_to: list[int]


class ESCTMeasured(TypedDict, total=False):
    """Of ESC-T.

    Attributes:
        n_forget: Features of D_f.
        forget_hits_before: Percent of D_f that the head answers as labelled before.
        forget_hits_soft: Percent of D_f answered as labelled with the mask as trained.
        forget_hits_hard: Percent of D_f answered as labelled with the mask after thresholding.
        epochs_run: Epochs until none was left, or all.
        masked_entries: Entries of the mask that are 0.
    """

    n_forget: int
    forget_hits_before: float
    forget_hits_soft: float
    forget_hits_hard: float
    epochs_run: int
    masked_entries: int


class RetainedSpanMeasured(TypedDict, total=False):
    """Of retained-span.

    Attributes:
        kept_dimensions: Rank of the span that is kept.
        n_forget: Features of D_f.
    """

    kept_dimensions: int
    n_forget: int


class CoverMeasured(TypedDict, total=False):
    """Of cover erasure.

    Attributes:
        n_forget: Features of D_f.
        cover_classes: The retained classes that cover.
        prototypes_moved: Cover classes whose prototype had to be moved to be answered as its class.
        classes_skipped: Classes that were left out because that failed.
        shared_by: "views" or "logits".
        shares: Share of the mass of D_f that lies on each cover class.
        moved_by_views: For each further view, the share of D_f that lands on another point.
        share_of_forget_recognised: Share of D_f that the head answers as forgotten.
        share_of_forget_replaced: Share of D_f that is put on a point.
        share_of_inputs_expected: Share of all inputs that will be, for classes of equal size or those given.
        guard_quantile: With a guard, its quantile.
        guard_margin: With a guard, the margin above which features are replaced.
    """

    n_forget: int
    cover_classes: list[int]
    prototypes_moved: list[int]
    classes_skipped: list[int]
    shared_by: str
    shares: list[float]
    moved_by_views: list[float]
    share_of_forget_recognised: float
    share_of_forget_replaced: float
    share_of_inputs_expected: float
    guard_quantile: float
    guard_margin: float


class UnlearningMeasured(TypedDict, total=False):
    """Of every method that changes weights.

    Attributes:
        n_forget: Images of D_f that were read; left out by methods that read D_r alone.
        n_retain: Images of D_r that were read; left out by methods that read D_f alone.
        stopped: Why the method ended before it was done; the weights are the last good ones.
    """

    n_forget: int
    n_retain: int
    stopped: str


class StepsMeasured(TypedDict):
    """Of gradient steps.

    Attributes:
        steps: Gradient steps that were taken.
        last_loss: Loss of the last gradient step, the mean over processes.
    """

    steps: int
    last_loss: float


class TrainedMeasured(UnlearningMeasured, StepsMeasured):
    """Of methods that take gradient steps.

    Attributes:
        epochs_run: Epochs that were run.
    """

    epochs_run: int


class ScrubMeasured(TrainedMeasured, total=False):
    """Of SCRUB; both with `rewind` only.

    Attributes:
        rewound_to_epoch: The epoch whose weights were taken, counted from 1.
        held_out_error: Percent of held-out forget images answered wrongly at the end.
    """

    rewound_to_epoch: int
    held_out_error: float


class SalUnMeasured(TrainedMeasured, total=False):
    """Of SalUn.

    Attributes:
        share_that_may_move: Share of all weights inside the saliency mask.
    """

    share_that_may_move: float


class LastLayersMeasured(TrainedMeasured, total=False):
    """Of CF-k and EU-k.

    Attributes:
        layers: Names of the layers that were trained.
        block: The last block that was kept; with `keep` only.
    """

    layers: list[str]
    block: str


class PhaseMeasured(StepsMeasured):
    """Of epochs on D_r with one optimizer.

    Attributes:
        epochs_run: Epochs that were run, those before a resume included.
        retained_accuracy: Percent of D_r answered as it is trained to be, on the way through each epoch.
    """

    epochs_run: int
    retained_accuracy: list[float]


class ClassRead(TypedDict):
    """What is read of the forgotten classes at one depth.

    Attributes:
        block: The last block that was kept.
        blocks_kept: Blocks that were kept.
        reading: Percent of held-out images of the forgotten classes that a converged probe recognises.
        noise: Standard deviation of the reading in points, from the number of images.
    """

    block: str
    blocks_kept: int
    reading: float
    noise: float


class CutTried(ClassRead, total=False):
    """One cut of a scan, or one block of a comparison with a reference.

    Attributes:
        retained: Percent of D_r that the network grown above it answers; of a scan.
        above: Readings and their noise at blocks that were drawn anew; of a scan.
        excess: Points by which the class is read better than where nothing is kept, before the head or at the block where
            that is most, the noise of both included; of a scan.
        reference: The reading of a network that never saw the class; of a comparison.
    """

    retained: float
    above: dict[str, list[float]]
    excess: float
    reference: float


class RegrowMeasured(UnlearningMeasured, PhaseMeasured, total=False):
    """Of regrow.

    Attributes:
        block: The block, or the module that `keep` named, up to which all was kept.
        blocks_kept: Blocks that were kept; None where the module that `keep` named is not counted as a block.
        blocks: Blocks of the network, kept and new.
        scan: What `keep="auto"` tried: first nothing kept, then cuts from the top down; the last one was taken. With a
            reference: its blocks from the bottom up, to the one where both part.
        share_of_weights_new: Share of all weights that were drawn anew.
        activations: Where activations of the kept part lay: "device", "memory" or "disk"; "none" where they were not kept.
        activation_bytes: Bytes that the activations of the kept part took.
        activation_seconds: Seconds that reading the activations of the kept part took; of several calls the last one's.
    """

    block: str
    blocks_kept: int | None
    blocks: int
    scan: list[CutTried]
    share_of_weights_new: float
    activations: str
    activation_bytes: int
    activation_seconds: float


class UnsirMeasured(TrainedMeasured, total=False):
    """Of UNSIR.

    Attributes:
        noise_images: Noise images that were made.
    """

    noise_images: int


class SSDMeasured(UnlearningMeasured, total=False):
    """Of SSD.

    Attributes:
        share_dampened: Share of all weights that were shrunk.
    """

    share_dampened: float


class KodgeMeasured(UnlearningMeasured, total=False):
    """Of kodge.

    Attributes:
        layers_edited: Layers whose weights were edited.
        layers_left: Convolutions and Linears that were left as they are.
    """

    layers_edited: int
    layers_left: int


class HeadSurgeryMeasured(UnlearningMeasured, total=False):
    """Of head surgery.

    Attributes:
        classes_removed: Classes that are never answered any more.
    """

    classes_removed: int
