"""Room on the disk for a decoder: asked for before anything is written, by what will be written."""

import shutil
from types import SimpleNamespace

import pytest

from rope_export import export_decoder
from rope_export.errors import InputError
from tests.unit.test_two_forms import model

__all__ = ["model"]


def test_weights_take_the_room_that_they_have_in_the_file(model, tmp_path, monkeypatch):
    lm, path = model
    size = sum(parameter.nbytes for parameter in lm.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size // 2))
    with pytest.raises(InputError, match=r"the weights take .* GB and the disk has .* GB free"):
        export_decoder(path, out=tmp_path / "plain", lowering="ort")
    assert not list(tmp_path.iterdir())
    export_decoder(path, out=tmp_path / "int4", lowering="ort", weights="int4")
