"""For users of Ray Data: `dataset.map_batches(ScoreImages, num_gpus=1, concurrency=4)`.

Whole data sets that lie in folders, shards and tables are scored by `fiqa-trt score --cluster` with less to set up:
it keeps their order, loses no row, and goes on after a failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fiqa_trt.decoding.base import DEFAULT_MAX_PIXELS
from fiqa_trt.decoding.items import Item, check_item
from fiqa_trt.errors import EngineError, InputError, UsageError, one_line
from fiqa_trt.outcomes import Status
from fiqa_trt.progress import Say, silent
from fiqa_trt.scorer import Scorer
from fiqa_trt.scores.schema import CAUSE
from fiqa_trt.scores.score import Score

if TYPE_CHECKING:
    import pyarrow as pa

Batch = TypeVar("Batch", "dict[str, Any]", "pa.Table")


class ScoreImages:
    """Adds to each batch the columns `score`, `score_<member>`, `status`, `error`, and those of causes if asked for.

    What is wrong with an image is in its row, as in the output of `fiqa-trt score`, and never raised. Scores of such
    rows are null in an Arrow table (`batch_format="pyarrow"`) and NaN in NumPy arrays.

    Raises:
        EngineError: what was asked for cannot be had.
    """

    def __init__(
        self,
        column: str = "bytes",
        *,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "auto",
        batch: int | None = None,
        decoder: str = "auto",
        threads: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        causes: bool = False,
        say: Say = silent,
    ) -> None:
        """Open the engine and the decoder, once in each actor.

        Args:
            column: of the images: bytes of files, paths, or uint8 arrays [H, W, 3].
            device: see `Scorer`, like the rest.
            precision: see above.
            engine: see above.
            batch: see above.
            decoder: see above.
            threads: see above; give the actor as many CPUs.
            max_pixels: see above.
            causes: add the columns `cause` and `cause_<name>`, too.
            say: see above.
        """
        self._column = column
        self._scorer = Scorer(
            device, precision, engine, batch=batch, decoder=decoder, threads=threads, max_pixels=max_pixels, say=say
        )
        self._causes = self._scorer.info.causes.names if causes else ()
        if causes and not self._causes:
            self._scorer.close()
            raise EngineError("causes=True: the checkpoint of this engine tells of none")

    def __call__(self, batch: Batch) -> Batch:
        """A batch with its scores.

        Args:
            batch: columns by name as NumPy arrays, or an Arrow table.

        Raises:
            InputError: it lacks the column.
            RunError: the engine failed.
        """
        if isinstance(batch, Mapping):
            self._check(list(batch))
            return {**batch, **self._as_arrays(self._scored(list(batch[self._column])))}
        if not hasattr(batch, "append_column"):
            raise UsageError(f"a batch is a {type(batch).__name__}: use batch_format='pyarrow' or 'numpy'")
        self._check(batch.column_names)
        for name, values in self._as_lists(self._scored(batch[self._column].to_pylist())).items():
            batch = batch.append_column(name, values)
        return batch

    def _check(self, names: Sequence[str]) -> None:
        if self._column not in names:
            raise InputError(f"no column {self._column} of images, there are {', '.join(names)}: ScoreImages(column)")

    def _scored(self, values: Sequence[Any]) -> list[Score]:
        """A score of each value, be it an image or not."""
        scores, items = dict[int, Score](), dict[int, Item]()
        for row, value in enumerate(values):
            try:
                if value is None:
                    scores[row] = _failed(Status.EMPTY, "null")
                    continue
                check_item(value, "the value")
                items[row] = value
            except UsageError as exc:
                scores[row] = _failed(Status.UNSUPPORTED, one_line(exc))
        scores.update(zip(items, self._scorer.score(list(items.values())), strict=True))
        return [scores[row] for row in range(len(values))]

    def _as_lists(self, scores: Sequence[Score]) -> dict[str, pa.Array]:
        import pyarrow as pa

        members = self._scorer.info.members
        return {
            "score": pa.array([score.score for score in scores], pa.float32()),
            **{
                f"score_{name}": pa.array([score.members.get(name) for score in scores], pa.float32())
                for name in members
            },
            **self._of_causes(scores),
            "status": pa.array([score.status for score in scores], pa.string()),
            "error": pa.array([score.error for score in scores], pa.string()),
        }

    def _of_causes(self, scores: Sequence[Score]) -> dict[str, pa.Array]:
        import pyarrow as pa

        if not self._causes:
            return {}
        severities = {name: [score.causes.get(name) for score in scores] for name in self._causes}
        named = pa.array([score.cause for score in scores], pa.string())
        return {CAUSE: named, **{f"{CAUSE}_{n}": pa.array(v, pa.float32()) for n, v in severities.items()}}

    def _as_arrays(self, scores: Sequence[Score]) -> dict[str, Any]:
        import pyarrow as pa

        return {
            name: np.array([np.nan if value is None else value for value in column.to_pylist()], np.float32)
            if pa.types.is_floating(column.type)
            else np.array(column.to_pylist(), object)
            for name, column in self._as_lists(scores).items()
        }


def _failed(status: Status, error: str) -> Score:
    return Score(None, None, {}, None, None, status.value, error)
