import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.flags import FlagValues
from ml_collections import config_flags

from tests.training.tiny import get_config
from zoo.training.flags import parse_flags
from zoo.training.settings import explain_override, from_config

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("tiny.py")


def test_a_config_file_becomes_typed_settings():
    config = get_config()
    config.optimizer.clip = None
    config.optimizer.weight_decay = 1
    settings = from_config(config)
    assert settings.optimizer.clip is None
    assert isinstance(settings.optimizer.weight_decay, float)
    assert settings.data.files == config.data.files
    assert settings.model["model_type"] == "deepseek_v3"


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs").glob("*.py")))
def test_shipped_configs_are_settings(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "configs")
    config = __import__(name).get_config()
    config.init_from = config.init_from or ("somewhere" if config.model is None else None)
    from_config(config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer.learning_rat", 1.0, "config.optimizer.learning_rat .*learning_rate"),
        ("stps", 1, r"config.stps is no field: did you mean config.steps\?"),
        ("zzz", 1, "config.zzz is no field: fields are model, data, steps"),
        ("data.windw", 3, "windw .*window"),
        ("steps", "many", "config.steps='many' must be of type int"),
        ("steps", True, "config.steps=True must be"),
        ("steps", 0, "steps=0 must be positive"),
        ("dtype", "float8", "config.dtype='float8' must be one of auto, float32, bfloat16"),
        ("accumulate", 3, "accumulate=3 must divide data.batch=4"),
        ("optimizer.beta2", 1.0, "optimizer.beta2=1.0 must be in"),
        ("optimizer.learning_rate", float("inf"), "learning_rate=inf must be a finite number"),
        ("balance.aux_loss", float("nan"), "balance.aux_loss=nan must be a finite number"),
        ("seed", 2**32, "seed=4294967296 must be from 0 to 4294967295"),
        ("samples.top_p", 2, "samples.top_p=2.0 must be at most 1"),
        ("evaluation.split", "tests", "split='tests' is not in the data, which has train, valid"),
        ("data.validation_fraction", 0, "evaluation.split='validation' is not in .* train, test"),
        ("optimizer.warmup", 99, "optimizer.warmup=99 must not exceed steps=48"),
        ("optimizer.schedule", "wsd", "optimizer.decay=0 with schedule='wsd'"),
        ("balance.bias_rate", -1.0, "balance.bias_rate=-1.0 must not be negative"),
        ("samples.prompts", "text", "config.samples.prompts='text' must be"),
        ("model", None, "model=None"),
        ("optimizer", 3, "config.optimizer=3 must be a group of fields"),
        ("lora", 3, "config.lora=3 must be Lora or NoneType"),
        ("lora", {"rank": 0}, "lora.rank=0 must be positive"),
        ("lora", {"rnk": 4}, "config.lora.rnk is no field: did you mean config.lora.rank"),
        ("lora", {"base": "int3"}, "config.lora.base='int3' must be one of stored, float32"),
        ("lora", {}, "lora without init_from"),
    ],
)
def test_wrong_settings_are_refused_by_name(path, value, message):
    tree = get_config().to_dict()
    *groups, last = path.split(".")
    group = tree
    for name in groups:
        group = group[name]
    group[last] = value
    with pytest.raises(ValueError, match=message):
        from_config(tree)


def test_missing_model_is_named():
    tree = get_config().to_dict()
    del tree["model"]
    with pytest.raises(ValueError, match=r"config\.model is missing"):
        from_config(tree)


def test_overrides_are_explained():
    assert "config.steps" in explain_override("--config.stpes=3")
    assert "config.optimizer.warmup" in explain_override("--config.optimizer.warmpu=3")
    assert explain_override("--config.optimizer.warmup=3") is None
    assert "config.lora.rank" in explain_override("--config.lora.rnk=3")
    assert explain_override("--config.model.hidden_sze=3") is None


@pytest.fixture
def parsed(monkeypatch):
    """The tiny config with a flag, by the parser of `train.py`."""

    def parse(*arguments, config=TINY):
        values = FlagValues()
        argv = ["train.py", f"--config={config}", *arguments]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for fields
        monkeypatch.setattr(flags, "FLAGS", values)
        held = config_flags.DEFINE_config_file("config", flag_values=values)
        parse_flags(argv)
        return held.value

    return parse


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--config.model.hidden_sise=8", "has no 'hidden_sise'. Did you mean \"hidden_size\""),
        ("--config.model=qwen3-0.6b", "config.model is a group of fields: set them one by one"),
        ("--config.lora=3", "config.lora is None: give it a value in the config's file"),
        ("--config.lora.rank=3", "config.lora is None: give it a value in the config's file"),
        ("--config.steps=many", "flag --config.steps=many: invalid literal"),
        ("--stps=3", "Unknown command line flag 'stps'"),
    ],
)
def test_flags_that_absl_refuses_end_with_a_sentence(flag, says, capsys, parsed):
    with pytest.raises(SystemExit, match="2"):
        parsed(flag)
    assert says in capsys.readouterr().err


def test_a_file_without_a_config_is_named_so(capsys, parsed, tmp_path, monkeypatch):
    (tmp_path / "empty.py").touch()
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # keeps what it had before
    with pytest.raises(SystemExit, match="2"):
        parsed(config=tmp_path / "empty.py")
    assert "a file that has no get_config()" in capsys.readouterr().err


def test_a_table_of_rules_is_a_flag(parsed):
    assert from_config(parsed("--config.rules=fsdp")).rules == "fsdp"


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_a_misspelt_flag_ends_with_a_sentence(script, tmp_path):
    command = [sys.executable, ROOT / script, f"--config={TINY}", f"--workdir={tmp_path / 'run'}"]
    if script == "eval.py":
        command[-1] = "--model=nowhere"
    done = subprocess.run(
        [*command, "--config.optimizer.learning_rat=1"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "did you mean config.optimizer.learning_rate?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
