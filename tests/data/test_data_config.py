"""DataConfig: what it takes, and the message for each thing that it does not."""

import pytest

from zoo.data import DataConfig


def test_a_config_dict_and_a_dict_read_the_same():
    from ml_collections import ConfigDict

    values = {"source": "glob", "files": ["a/*.txt", "b/*.txt"], "window": 64, "test_fraction": 0}
    config = DataConfig.from_mapping(ConfigDict(values))
    assert config == DataConfig.from_mapping(values)
    assert config.files == ("a/*.txt", "b/*.txt")
    hash(config)


def test_one_pattern_may_be_a_plain_string():
    assert DataConfig(source="glob", files="a/*.txt").files == ("a/*.txt",)


def test_a_misspelt_field_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"data\.widnow is not a field: did you mean 'window'\?"):
        DataConfig.from_mapping({"widnow": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "web"}, r"data\.source='web' must be one of stdlib, glob, tfds"),
        ({"window": "256"}, r"data\.window='256' must be a whole number"),
        ({"window": True}, r"data\.window=True must be a whole number"),
        ({"window": 0}, r"data\.window=0 must be positive"),
        ({"batch": -4}, r"data\.batch=-4 must be positive"),
        ({"seed": -1}, r"data\.seed=-1 must be from 0"),
        ({"tokenizer": 3}, r"data\.tokenizer=3 must be a string"),
        ({"test_fraction": "2%"}, r"data\.test_fraction='2%' must be a number"),
        ({"test_fraction": 1.5}, r"data\.test_fraction=1\.5 must be at least 0 and below 1"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, r"leave nothing to train on"),
        ({"source": "glob"}, r"data\.files is empty"),
        ({"source": "glob", "files": (3,)}, r"data\.files=\(3,\) must be a pattern"),
        (
            {"files": ("a",)},
            r"data\.files=\('a',\) is not read with data\.source='stdlib': set .*'glob'",
        ),
        ({"source": "tfds"}, r"data\.name and data\.data_dir are missing"),
        (
            {"source": "tfds", "name": "x", "test_fraction": 0.1},
            r"data\.test_fraction=0\.1 is not read .*='tfds': set data\.source='stdlib' or 'glob'",
        ),
        ({"name": "x"}, r"data\.name='x' is not read with data\.source='stdlib': set .*'tfds'"),
    ],
)
def test_a_value_that_does_not_fit_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        DataConfig.from_mapping(values)
