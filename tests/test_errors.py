"""The error tree: public exit codes, and errors that cross processes whole."""

import copy
import inspect
import pickle
import re

import pytest

from registry import errors
from registry.errors import AmbiguousError, CkregError, NotFoundError

CLASSES = [
    c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, CkregError)
]  # fmt: skip
DRAWN = {
    name: int(code) for name, code in re.findall(r"(\w+Error) +(\d+)  ", errors.__doc__ or "")
}  # fmt: skip


def test_exit_codes_are_the_ones_of_the_tree_drawn_on_top():
    assert {c.__name__: c.exit_code for c in CLASSES} == DRAWN


def test_exit_codes_are_distinct_but_for_the_two_kinds_of_refused_use():
    codes = [c.exit_code for c in CLASSES if c is not errors.ContainerError]
    assert len(set(codes)) == len(codes)
    assert errors.ContainerError.exit_code == errors.RefusedLoadError.exit_code == 7
    assert not {0, 2, 20, 130, 143} & set(codes)  # success, usage, a condition, interrupted


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_shows_message_and_hint(cls):
    assert str(cls("no model 'a'")) == "no model 'a'"
    assert str(cls("no model 'a'", hint="ckreg models")) == "no model 'a'\nhint: ckreg models"
    assert cls("m", hint="h").to_dict() == {
        "type": cls.__name__, "exit_code": cls.exit_code, "message": "m", "hint": "h",
    }  # fmt: skip
    assert issubclass(cls, CkregError)
    assert cls.__name__.endswith("Error")


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_an_error_crosses_processes_with_every_field(cls, again):
    extra = {NotFoundError: {"near": ["a"]}, AmbiguousError: {"candidates": ["a@v1"]}}.get(cls, {})
    error = cls("what happened", hint="ckreg list", **extra)
    error.add_note("on rank 3")
    found = again(error)
    assert type(found) is cls
    assert vars(found) == vars(error)
    assert found.args == error.args
    assert str(found) == str(error)
    assert found.__notes__ == ["on rank 3"]


def test_near_names_and_candidates_are_tuples():
    assert NotFoundError("m", near=["a", "b"]).near == ("a", "b")
    assert NotFoundError("m").near == ()
    assert AmbiguousError("m", candidates=["a"]).candidates == ("a",)
