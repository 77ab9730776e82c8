"""Knowledge Retention as a metric of `evaluate`: thin over `hf_kd.metrics.knowledge_retention`.

Features travel through the Arrow cache of `evaluate` as fixed-size float32 rows and come back as one numpy array. For
50,000 x 768 that peaks at 0.84 GB before the probe; the library's default, Python lists, at 2.2 GB.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_kd.errors import InvalidValueError
from hf_kd.metrics.knowledge_retention import knowledge_retention

_DESCRIPTION = """\
Knowledge Retention (KR): how well a fresh linear classifier still reads the forgotten labels from a model's features.
Accuracies in percent on forget and retain samples of train (D_f, D_r) and test (D_ft, D_rt), with their harmonic means
HM and HM_t. Low D_f and D_ft and high D_r, D_rt, HM and HM_t are forgetting. The level of classes that the model was
never trained on is far above chance, so compare with such a reference.
"""

_KWARGS_DESCRIPTION = """
Args:
    features: pooled features of each sample, [n, d] numbers (arrays, tensors or lists).
    labels: integer class of each sample, [n].
    split: 0 for a training sample, 1 for a test sample, [n]. The probe is fitted on 0 and scored on both.
    train_features, train_labels, test_features, test_labels: in `compute` only, instead of the three above; they
        bypass the cache of `evaluate`.
    forget_labels: the class or classes that were to be forgotten.
    protocol: "converged" (default; the probe at its optimum, which no invertible map of the features can fool) or
        "paper" (ten epochs of SGD, stopped long before: for comparison with printed numbers only). The default
        follows the configuration: `evaluate.load(path, "paper")`.
    seed: of the probe's own generator.
Returns:
    D_f, D_r, D_ft, D_rt, HM, HM_t: percent.
    gradient_norm: of the probe's loss where fitting stopped.
    converged: 1.0 when that norm is below the tolerance of the converged protocol, else 0.0; always 0.0 for "paper".
    repeated_test_rows: test rows that are exact copies of training rows.
Examples:
    >>> metric = evaluate.load("path/to/knowledge_retention")
    >>> metric.add_batch(features=[[0.0, 1.0], [1.0, 0.0]] * 50, labels=[0, 1] * 50, split=[0] * 60 + [1] * 40)
    >>> metric.compute(forget_labels=[1])["D_ft"]
    100.0
"""

_CITATION = """\
@inproceedings{lee2025esc,
  author    = {Lee, Tae-Young and Park, Sundong and Jeon, Minwoo and Hwang, Hyoseok and Park, Gyeong-Moon},
  title     = {{ESC}: Erasing Space Concept for Knowledge Deletion},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {5010--5019},
  year      = {2025},
  note      = {arXiv:2504.02199}
}
"""

PROTOCOLS: dict[str, Any] = {"default": "converged", "converged": "converged", "paper": "paper"}
PAIR = ("train_features", "train_labels", "test_features", "test_labels")


class KnowledgeRetention(evaluate.Metric):
    """Knowledge Retention of forgotten classes in features; see `compute`."""

    def __init__(self, config_name=None, **kwargs):
        if (config_name or "default") not in PROTOCOLS:
            raise InvalidValueError(f"The configuration is {config_name!r}; expected 'converged' (default) or 'paper'.")
        super().__init__(config_name=config_name, **kwargs)
        self.info.format = "numpy"  # refused by the constructor of MetricInfo for columns that hold vectors
        self._width = None

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                features=datasets.List(datasets.Value("float32")),
                labels=datasets.Value("int64"),
                split=datasets.Value("int64"),
            ),
            reference_urls=["https://arxiv.org/abs/2504.02199"],
        )

    def _infer_feature_from_batch(self, batch):
        # Rows of a known length are written several times faster than lists, as the library's fixed-size 2-D arrays.
        self._width = batch["features"].shape[-1]
        return datasets.Features(
            features=datasets.Array2D((1, self._width), "float32"),
            labels=datasets.Value("int64"),
            split=datasets.Value("int64"),
        )

    def add_batch(self, *, features=None, labels=None, split=None, **kwargs):
        """Add samples: features [b, d], labels [b] and split [b] (0 train, 1 test).

        Raises ValueError on ragged, non-finite or misaligned input; what was added before stays.
        """
        if any(value is not None for value in kwargs.values()):
            raise InvalidValueError(f"Unknown inputs {sorted(kwargs)}; this metric takes features, labels and split.")
        missing = [k for k, v in {"features": features, "labels": labels, "split": split}.items() if v is None]
        if missing:
            raise InvalidValueError(
                f"{', '.join(missing)} missing; a batch has features [b, d], labels [b] and split [b]: 0 train, 1 test."
            )
        features = _matrix(features, "features")
        labels, split = _integers(labels, "labels", len(features)), _integers(split, "split", len(features))
        if not np.isin(split, (0, 1)).all():
            raise InvalidValueError(
                f"split contains {sorted(set(split.tolist()) - {0, 1})[:5]}; it is 0 for train, 1 for test."
            )
        if self.writer is not None and features.shape[1] != self._width:
            raise InvalidValueError(
                f"features have {features.shape[1]} columns, those added before {self._width}; all have to come from "
                "the same tap of the same model."
            )
        super().add_batch(features=features[:, None], labels=labels, split=split)

    def add(self, *, features=None, labels=None, split=None, **kwargs):
        """Add one sample: features [d], its label and its split (0 train, 1 test). Raises as `add_batch` does."""
        one = {"features": features, "labels": labels, "split": split} | kwargs
        self.add_batch(**{name: None if value is None else [value] for name, value in one.items()})

    def compute(self, *, forget_labels=None, **kwargs):
        """Knowledge Retention of `forget_labels` in what was added, or in the samples given here.

        Raises ValueError on malformed input, on a single class, on fewer samples than classes, and where a split has
        no forget or no retain sample. Returns None on processes other than the first.
        """
        if forget_labels is None and self.process_id == 0:
            raise InvalidValueError("forget_labels is missing; name the class or classes that were to be forgotten.")
        given = [name for name in PAIR if kwargs.get(name) is not None]
        if not given:
            for name in ("predictions", "references"):
                if kwargs.pop(name, None) is not None:
                    raise InvalidValueError(f"{name} is unknown to this metric; it takes features, labels and split.")
            return super().compute(forget_labels=forget_labels, **kwargs)
        if len(given) < 4 or self.writer is not None or any(kwargs.get(n) is not None for n in self._feature_names()):
            raise InvalidValueError(
                f"Got {', '.join(given)}; pass {', '.join(PAIR)} together and nothing through features, labels, split "
                "or add_batch, or everything through those."
            )
        if self.process_id:
            return None
        pair = [kwargs.pop(name) for name in PAIR]
        settings = {name: value for name, value in kwargs.items() if value is not None}
        return self._measure(*pair, forget_labels=forget_labels, **settings)

    def _compute(self, *, features, labels, split, forget_labels, **settings):
        features = np.asarray(features)
        if features.dtype == object:
            raise InvalidValueError(
                "The processes added features of different widths; all have to come from the same tap."
            )
        features = features.reshape(len(features), -1)
        sizes = [int((split == part).sum()) for part in (0, 1)]
        if 0 in sizes:
            raise InvalidValueError(
                f"{sizes[0]} training (split 0) and {sizes[1]} test samples (split 1); both are needed: the probe is "
                "fitted on one and scored on the other."
            )
        parts = []
        for part in (0, 1):
            rows = np.flatnonzero(split == part)
            if rows[-1] - rows[0] + 1 == len(rows):  # one run: a view instead of a copy
                rows = slice(rows[0], rows[-1] + 1)
            parts += [features[rows], labels[rows]]
        return self._measure(*parts, forget_labels=forget_labels, **settings)

    def _measure(self, train_features, train_labels, test_features, test_labels, forget_labels, protocol=None, seed=0):
        result = knowledge_retention(
            _matrix(train_features, "train_features"),
            _integers(train_labels, "train_labels", len(train_features)),
            _matrix(test_features, "test_features"),
            _integers(test_labels, "test_labels", len(test_features)),
            forget_labels,
            protocol=protocol or PROTOCOLS[self.config_name],
            seed=seed,
        )
        scores = {name: float(getattr(result.scores, name)) for name in ("D_f", "D_r", "D_ft", "D_rt", "HM", "HM_t")}
        return scores | {
            "gradient_norm": float(result.convergence.gradient_norm),
            "converged": float(result.convergence.converged),
            "repeated_test_rows": float(result.repeated_test_rows),
        }


def _matrix(values, name):
    """Finite float32 [n, d] from arrays, tensors (any device and dtype) or lists of rows."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    elif len(values) and hasattr(values[0], "detach"):
        values = [row.detach().float().cpu().numpy() for row in values]
    try:
        matrix = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise InvalidValueError(
            f"{name} are ragged or not numbers; every row needs the same number of columns."
        ) from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InvalidValueError(
            f"{name} have shape {matrix.shape}; expected [n, d], at least 1 x 1. Flatten or pool first."
        )
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise InvalidValueError(
            f"{name} have {int((~finite).sum())} of {len(matrix)} rows with NaN or infinite entries (first: row "
            f"{int(np.argmin(finite))}); drop these samples or compute the features in float32."
        )
    return matrix


def _integers(values, name, rows):
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    array = np.asarray(values)
    if array.shape != (rows,) or array.dtype.kind not in "iu":
        raise InvalidValueError(
            f"{name} have shape {array.shape} and dtype {array.dtype}; expected {rows} integers, one a row."
        )
    return array.astype(np.int64)
