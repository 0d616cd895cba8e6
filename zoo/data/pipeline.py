"""Grain pipelines over prepared windows: what a training or evaluation loop iterates over.

The chain is a pure `MapDataset` of window numbers, shuffle -> repeat -> batch -> shard -> map, and
the windows of a batch are cut only at its end. Process p of P gets rows p*B/P to (p+1)*B/P of the
global batch, so joining the processes' batches gives the global batch, row for row, whatever P is.
Threads read ahead; the iterator's state is {"next_index": number of the next batch}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.data.prepare import Prepared

if TYPE_CHECKING:
    import grain

_THREADS = 2
_AHEAD = 8  # Batches.


def train_batches(
    prepared: Prepared,
    batch: int | None = None,
    seed: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator over batches of the "train" split, shuffled anew in every epoch.

    Args:
      prepared: from `prepare`.
      batch: rows of the global batch B; `prepared.config.batch` if None.
      seed: of the order; `prepared.config.seed` if None.
      process_index: this process, p of P.
      process_count: P, which must divide the batch.

    Returns:
      An iterator over dicts of i32[B/P, T] (see `zoo.data`). `get_state()` gives a JSON dict that
      `set_state()` of a new iterator with the same arguments takes: it goes on with the same
      batches. Orbax saves the iterator as it is. P may differ between the two.
    """
    import grain

    batch = prepared.config.batch if batch is None else batch
    seed = prepared.config.seed if seed is None else seed
    rows = _rows(batch, process_index, process_count)
    windows = prepared.windows("train")
    numbers = grain.MapDataset.range(len(windows)).shuffle(seed=seed).repeat()
    # Nothing remains of an endless dataset; without drop_remainder its length overflows at batch 1.
    batches = numbers.batch(batch, drop_remainder=True)
    return iter(_read_ahead(batches.map(lambda n: windows.batch(n[rows]))))


def eval_batches(
    prepared: Prepared,
    split: str,
    batch: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
) -> grain.IterDataset:
    """Every window of a split once, in order; the last batch is filled with padding.

    Args:
      prepared: from `prepare`.
      split: "train", "validation" or "test".
      batch: rows of the global batch B; `prepared.config.batch` if None.
      process_index: this process, p of P.
      process_count: P, which must divide the batch.
      limit: at most so many batches, from the start. `bytes` of the split then no longer fits.

    Returns:
      An iterable, which can be iterated again, over dicts of i32[B/P, T] (see `zoo.data`).

    Raises:
      ValueError: there is no such split.
    """
    import grain

    batch = prepared.config.batch if batch is None else batch
    rows = _rows(batch, process_index, process_count)
    windows = prepared.windows(split)
    count = -(-len(windows) // batch)
    count = count if limit is None else min(count, limit)
    numbers = grain.MapDataset.range(count * batch).batch(batch)
    return _read_ahead(numbers.map(lambda n: windows.batch(n[rows])))


def _rows(batch: int, process_index: int, process_count: int) -> slice:
    if batch <= 0 or batch % process_count:
        raise ValueError(
            f"data.batch={batch} must be a positive multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must be from 0 to {process_count - 1}")
    share = batch // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _read_ahead(batches: grain.MapDataset) -> grain.IterDataset:
    import grain

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    return batches.to_iter_dataset(options)
