"""TFDS: a builder that keeps a corpus as array_record files, and a reader of any prepared dataset.

Neither needs TensorFlow: array_record has its own writer, and `as_data_source` decodes with numpy.
TFDS writes into a folder "incomplete..." and renames it at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from zoo.data import disk
from zoo.data.config import DataConfig
from zoo.data.sources import SPLITS, Corpus

_READ_AT_ONCE = 256  # Records; as_data_source is several times slower one by one.


class ZooText(tfds.core.GeneratorBasedBuilder):
    """The documents of a `Corpus` as {"text", "name"}, in order, with the corpus sha256."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look for download checksums beside this module, for which it imports
    # importlib_resources, which it does not install.
    code_path = None

    def __init__(self, corpus: Corpus, *, data_dir: Path):
        self.corpus = corpus
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text documents from files, split by the sha256 of their bytes.",
            features=tfds.features.FeaturesDict({"text": text, "name": tfds.features.Text()}),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                corpus_sha256=self.corpus.sha256,
                fractions=list(self.corpus.fractions),
                bytes={name: split.bytes for name, split in self.corpus.splits.items()},
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {name: self._generate_examples(name) for name in self.corpus.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        with disk.progress(f"Writing {split} documents", self.corpus.splits[split].bytes) as done:
            for number, document in enumerate(self.corpus.documents(split)):
                yield number, {"text": document.data.decode(), "name": document.name}
                done(len(document.data))


@dataclass(frozen=True)
class Dataset:
    """A prepared TFDS dataset: which of its splits are ours, and the feature with the text.

    `sha256` is over its record files; `key` also takes in the splits and the feature.
    """

    builder: tfds.core.DatasetBuilder
    names: Mapping[str, str]
    text_feature: str
    sha256: str

    @property
    def key(self) -> str:
        how = f"{self.sha256} {sorted(self.names.items())} {self.text_feature}"
        return hashlib.sha256(how.encode()).hexdigest()

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.names)

    def bytes(self, split: str) -> int:
        """About how many bytes the split has, for a progress bar."""
        info = self.builder.info.splits
        name = self.names[split]
        base = name.partition("[")[0]
        share = info[name].num_examples / max(info[base].num_examples, 1)
        return int(info[base].num_bytes * share)

    def texts(self, split: str) -> Iterator[str]:
        """Yields the texts of a split in order, empty ones left out.

        Raises:
          ValueError: a text is not UTF-8.
        """
        records = self.builder.as_data_source(self.names[split])
        for start in range(0, len(records), _READ_AT_ONCE):
            numbers = range(start, min(start + _READ_AT_ONCE, len(records)))
            for number, record in zip(numbers, records.__getitems__(list(numbers)), strict=True):
                data = record[self.text_feature]
                try:
                    text = data if isinstance(data, str) else bytes(data).decode("utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{self.builder.info.full_name}, split {self.names[split]!r}, record "
                        f"{number}: feature {self.text_feature!r} is not UTF-8 text"
                    ) from error
                if text:
                    yield text


def build(corpus: Corpus, folder: Path) -> Dataset:
    """Writes a scanned corpus under `folder`, unless it is there already."""
    builder = ZooText(corpus, data_dir=folder)
    if not Path(builder.data_dir).exists():
        disk.remove_unfinished(Path(builder.data_dir).parent, "incomplete.*")
        try:
            with _quiet():
                builder.download_and_prepare()
        except RuntimeError as error:  # So array_record reports a write that failed.
            raise OSError(error) from error
    return Dataset(builder, {name: name for name in corpus.splits}, "text", corpus.sha256)


def find(config: DataConfig) -> Dataset:
    """Opens the prepared dataset that a "tfds" config names.

    Raises:
      ValueError: there is none, or it lacks a split, the feature, or files that numpy can read.
    """
    builder = _open(config)
    name = builder.info.full_name
    wanted = {s: getattr(config, f"{s}_split") for s in SPLITS}
    names = {ours: theirs for ours, theirs in wanted.items() if theirs is not None}
    for ours, theirs in names.items():
        try:
            documents = builder.info.splits[theirs].num_examples
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"data.{ours}_split={theirs!r} is not in {name}, which has "
                f"{', '.join(builder.info.splits)}: name one of them, a slice such as "
                "'train[98%:]', or None to have no such split"
            ) from error
        if not documents:
            raise ValueError(
                f"data.{ours}_split={theirs!r} of {name} holds no documents: name another"
            )
    features = builder.info.features
    texts = [key for key, feature in features.items() if _is_text(feature)]
    if config.text_feature not in texts:
        raise ValueError(
            f"data.text_feature={config.text_feature!r} is not a text feature of {name}: "
            f"its text features are {', '.join(texts) or 'none'}"
        )
    file_format = builder.info.file_format
    if file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{name} in {builder.data_dir} is stored as {file_format.value}, which only TensorFlow "
            "reads: prepare it again with file_format='array_record'"
        )
    return Dataset(builder, names, config.text_feature, _hash_records(Path(builder.data_dir)))


def _open(config: DataConfig) -> tfds.core.DatasetBuilder:
    folder = Path(config.data_dir).expanduser() if config.data_dir else None
    if folder is not None and (folder / "dataset_info.json").is_file():
        found = tfds.builder_from_directory(str(folder))
        said = None if config.name is None else config.name.replace(":", "/")
        if said is not None and not f"{found.info.full_name}/".startswith(f"{said}/"):
            raise ValueError(
                f"data.data_dir={config.data_dir!r} holds {found.info.full_name}, which is not "
                f"data.name={config.name!r}: leave one of them out"
            )
        return found
    if config.name is None:
        raise ValueError(
            f"data.data_dir={config.data_dir!r} holds no dataset_info.json: set data.name, or name "
            "the folder of one version of a prepared dataset"
        )
    where = {} if folder is None else {"data_dir": str(folder)}
    try:
        return tfds.core.read_only_builder.builder_from_files(config.name, **where)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(
            f"data.name={config.name!r} is not prepared in data.data_dir={config.data_dir!r}: "
            "prepare it there with file_format='array_record', or name another"
        ) from error


def _is_text(feature: tfds.features.FeatureConnector) -> bool:
    return isinstance(feature, tfds.features.Tensor) and (
        feature.shape == () and np.dtype(feature.np_dtype).kind in "OSU"
    )


def _hash_records(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(folder.glob("*.array_record*")):
        with open(file, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from telling what it does; `disk.progress` tells how far it is."""
    shown = getattr(tfds.core.utils.tqdm_utils, "_active", True)
    tfds.display_progress_bar(False)
    logger = logging.getLogger("absl")
    logger.addFilter(_is_news)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.removeFilter(_is_news)
        tfds.display_progress_bar(shown)


def _is_news(record: logging.LogRecord) -> bool:
    return "tensorflow_datasets" not in record.pathname or record.levelno >= logging.WARNING
