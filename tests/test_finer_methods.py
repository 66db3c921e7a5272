"""Methods for larger pictures: what differs, and who is told of them."""

from __future__ import annotations

import pytest

from hashpose_ns.methods import object_, object_fine, small


@pytest.mark.parametrize("side, trusted, said", [(400, True, True), (299, True, False), (400, False, False)])
def test_large_pictures_and_a_trusted_start_are_told_of_the_finer_method(side: int, trusted: bool, said: bool):
    advice = object_.config.advice(side, trusted)
    assert (advice is not None and "hashpose-object-fine" in advice) == said


def test_nobody_is_sent_on_from_the_finest_method():
    assert object_fine.config.advice(800, True) is None and small.config.advice(800, True) is None


def test_the_finer_method_leaves_the_other_as_it_was():
    coarse, fine = object_.config.pipeline.model, object_fine.config.pipeline.model
    assert object_fine.config.method_name == "hashpose-object-fine" != object_.config.method_name
    assert fine.field.encoding.max_resolution > coarse.field.encoding.max_resolution
    assert not coarse.eval_skips_empty_space and fine.eval_skips_empty_space
    assert fine.camera_optimizer == coarse.camera_optimizer
