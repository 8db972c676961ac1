"""A user's model comes from a function of theirs, with weights from a safetensors file."""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fusedge.bundle.errors import FusedgeError
from fusedge.export.factory import TaskEvaluation, load_factory

_COUNT = itertools.count()
_HEAD = "import torch\nfrom torch import nn\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def module(code: str) -> str:
    """A module of a new name in the current folder."""
    name = f"user_model_{next(_COUNT)}"
    Path(f"{name}.py").write_text(_HEAD + code)
    return name


LINEAR = "def make():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Linear(3, 2), nn.Dropout())\n"


def test_a_plain_model_without_a_checkpoint_is_known_by_its_weights() -> None:
    one, two = load_factory(f"{module(LINEAR)}:make"), load_factory(f"{module(LINEAR)}:make")
    assert one.task is None and one.name == "Sequential" and not one.module.training
    assert one.provenance.weights_sha256 == two.provenance.weights_sha256
    assert (one.provenance.task, one.provenance.weights_licence) == ("Sequential", "not stated")
    other = load_factory(f"{module(LINEAR.replace('(0)', '(1)'))}:make")
    assert other.provenance.weights_sha256 != one.provenance.weights_sha256


def test_weights_come_from_the_checkpoint() -> None:
    path = Path("w.safetensors")
    tensors = {"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2)}
    save_file(tensors, path)
    loaded = load_factory(f"{module(LINEAR)}:make", path)
    assert loaded.module(torch.ones(1, 3)).tolist() == [[3.0, 3.0]]
    assert loaded.provenance.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_tied_weights_may_be_in_the_file_once() -> None:
    code = (
        "def make():\n    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))\n"
        "    model[1].weight = model[0].weight\n    return model\n"
    )
    path = Path("w.safetensors")
    weights = {"0.weight": torch.eye(2), "0.bias": torch.ones(2), "1.bias": torch.ones(2)}
    save_file(weights, path)
    loaded = load_factory(f"{module(code)}:make", path)
    assert loaded.module(torch.zeros(1, 2)).tolist() == [[2.0, 2.0]]


def test_tied_weights_that_differ_in_the_file_are_refused() -> None:
    code = (
        "def make():\n    model = nn.Sequential(nn.Linear(2, 2, False), nn.Linear(2, 2, False))\n"
        "    model[1].weight = model[0].weight\n    return model\n"
    )
    path, name = Path("w.safetensors"), module(code)
    save_file({"0.weight": torch.eye(2), "1.weight": 5 * torch.eye(2)}, path)
    with pytest.raises(
        FusedgeError, match=r"0.weight and 1.weight are one tensor in the module, but"
    ):
        load_factory(f"{name}:make", path)
    save_file({"0.weight": torch.eye(2), "1.weight": torch.eye(2)}, path)
    assert load_factory(f"{name}:make", path).module(torch.ones(1, 2)).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("checkpoint", [None, Path("w.safetensors")])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def make():\n    return nn.LazyLinear(2)\n",
            r":make: weight of the module has no values yet \(run the module once",
        ),
        (
            "def make():\n    return nn.Linear(2, 2, device='meta')\n",
            r":make: weight of the module has no values yet",
        ),
        (
            "class Extra(nn.Linear):\n    def get_extra_state(self):\n        return {}\n"
            "def make():\n    return Extra(2, 2)\n",
            r":make: the module keeps a dict as _extra_state, which no checkpoint can hold",
        ),
    ],
)
def test_a_module_whose_weights_are_not_all_tensors_with_values_is_refused(
    code: str, message: str, checkpoint: Path | None
) -> None:
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, "w.safetensors")
    with pytest.raises(FusedgeError, match=message):
        load_factory(f"{module(code)}:make", checkpoint)


def test_a_train_that_returns_nothing_is_no_fault() -> None:
    code = (
        "class Own(nn.Linear):\n    def train(self, mode=True):\n        super().train(mode)\n"
        "def make():\n    return Own(2, 2)\n"
    )
    loaded = load_factory(f"{module(code)}:make").module
    assert type(loaded).__name__ == "Own" and not loaded.training


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"0.weigth": torch.ones(2, 3), "0.bias": torch.zeros(2)},
            "the checkpoint has 0.weigth, which the module has not; the nearest there is 0.weight",
        ),
        ({"0.weight": torch.ones(2, 3)}, "w.safetensors: the checkpoint lacks 0.bias"),
        (
            {"0.weight": torch.ones(2, 4), "0.bias": torch.zeros(2)},
            r"0.weight has the shape \[2, 4\], in the module \[2, 3\]",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, "w.safetensors")
    with pytest.raises(FusedgeError, match=message):
        load_factory(f"{module(LINEAR)}:make", Path("w.safetensors"))


def test_a_pickle_is_never_read() -> None:
    Path("w.pt").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(FusedgeError, match=r"a pickle could run code .*save_file"):
        load_factory(f"{module(LINEAR)}:make", Path("w.pt"))
    Path("w.safetensors").write_bytes(Path("w.pt").read_bytes())
    with pytest.raises(FusedgeError, match=r"w.safetensors: cannot be read"):
        load_factory(f"{module(LINEAR)}:make", Path("w.safetensors"))
    assert not Path("hacked").exists()


def test_a_missing_checkpoint_is_one_line() -> None:
    with pytest.raises(FusedgeError, match=r"w.safetensors: cannot be read: .*No such file"):
        load_factory(f"{module(LINEAR)}:make", Path("w.safetensors"))


@pytest.mark.parametrize("spec", ["model", "model:", "a/b.py:make", "model.py :make", ":make"])
def test_a_name_of_another_form_is_refused(spec: str) -> None:
    with pytest.raises(FusedgeError, match=r"give it as package\.module:factory"):
        load_factory(spec)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0\n", r"user_model_\d+.py:3: user_model_\d+ cannot be imported: ZeroDivisionError"),
        ("def make(:\n", r"user_model_\d+.py:3: .* cannot be imported: SyntaxError"),
        ("raise SystemExit(2)\n", r"user_model_\d+.py:3: .*SystemExit: 2"),
        (
            "import no_such_thing.at_all\n",
            r"py:3: user_model.*: ModuleNotFoundError: No module named 'no_such_thing'",
        ),
        (
            "def make():\n    return nn.Linear(-1, 2)\n",
            r"user_model_\d+.py:4: user_model_\d+:make fails: RuntimeError: Trying to create tensor",
        ),
        (
            "def make():\n    import no_such_thing\n",
            r"py:4: user_model.* fails: ModuleNotFoundError: No module named 'no_such_thing'",
        ),
        ("def make(size):\n    pass\n", "make fails: TypeError: make.. missing 1 required"),
        ("def make():\n    return nn.Linear\n", "make returns a type .return an nn.Module"),
        ("def make():\n    return nn.Linear(1, 1), 3\n", r"make returns \(Linear, int\)"),
        ("make = 3\n", "make is a int, not a function"),
        (
            "def maker():\n    pass\n",
            "unknown function of user_model_.* 'make' .did you mean 'maker'",
        ),
        (
            "def make():\n    model = nn.Linear(1, 1)\n    model.provenance = 1\n    return model\n",
            "the model's `provenance` is a int",
        ),
    ],
)
def test_a_failure_of_the_users_code_has_its_place(code: str, message: str) -> None:
    with pytest.raises(FusedgeError, match=message):
        load_factory(f"{module(code)}:make")


@pytest.mark.parametrize("name", ["no_such_model", "no_such_package.model"])
def test_a_module_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(
        FusedgeError, match=r"there is no module 'no_such_[a-z]*', neither in .* nor"
    ):
        load_factory(f"{name}:make")


TASK = """
from fusedge.export.task import Task, provenance
from tests.export.tiny_fusion import TinyModel, make_task

def pair():
    return TinyModel(), make_task()

def own():
    model = TinyModel()
    model.task = make_task()
    return model

def plain():
    model = nn.Linear(1, 1)
    model.provenance = provenance(licence="MIT")
    return model
"""


def test_a_fusion_model_brings_its_task() -> None:
    name = module(TASK)
    pair, own = load_factory(f"{name}:pair"), load_factory(f"{name}:own")
    for loaded in (pair, own):
        assert loaded.task is not None and loaded.name == "tiny"
        assert loaded.task.provenance == loaded.provenance
        assert loaded.provenance.task == "tiny"
        assert loaded.provenance.weights_licence == "Apache-2.0"
    assert pair.provenance.weights_sha256 == own.provenance.weights_sha256
    plain = load_factory(f"{name}:plain")
    assert plain.task is None and plain.provenance.weights_licence == "MIT"


EVALUATION = """
import dataclasses
from fusedge.export.evaluation import StreamEvaluation
from tests.export.tiny_fusion import TinyModel, make_task

class Own:
    metric_name, identity = "quality", "1"
    def metric(self, graphs):
        return {}["nothing"]
    def feeds(self, graphs, part):
        yield {}
        raise ValueError("recording 2 is empty")

def fails(parts):
    raise OSError("no recordings")

def wrong(parts):
    return StreamEvaluation(parts, None, None, "quality")

def nothing(parts):
    return None

def task(evaluation):
    return TinyModel(), dataclasses.replace(make_task(), evaluation=evaluation)

make_fails, make_wrong = lambda: task(fails), lambda: task(wrong)
make_nothing, make_own = lambda: task(nothing), lambda: task(lambda parts: Own())
"""


def test_a_failure_of_a_tasks_evaluation_has_its_place() -> None:
    name = module(EVALUATION)

    def evaluation(factory: str) -> TaskEvaluation:
        task = load_factory(f"{name}:{factory}").task
        assert task is not None
        return TaskEvaluation(task, [])

    told = r"user_model_\d+.py:\d+: the evaluation of the task tiny fails: "
    with pytest.raises(FusedgeError, match=told + "OSError: no recordings"):
        evaluation("make_fails")
    with pytest.raises(FusedgeError, match=told):  # in Fusedge, but by the user's arguments
        evaluation("make_wrong")
    with pytest.raises(FusedgeError, match="gives None, which has no `metric_name`"):
        evaluation("make_nothing")
    own = evaluation("make_own")
    assert (own.metric_name, own.identity) == ("quality", "1")
    with pytest.raises(FusedgeError, match=told + "KeyError: 'nothing'"):
        own.metric({})
    feeds = own.feeds({}, "imu")
    assert next(feeds) == {}
    with pytest.raises(FusedgeError, match=told + "ValueError: recording 2 is empty"):
        next(feeds)
    next(own.feeds({}, "imu"))  # one that is left unfinished raises nothing
