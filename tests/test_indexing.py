from __future__ import annotations

import pytest
import torch

from autosparse.indexing import divided, places_of


def test_places_are_those_of_the_true_ones_in_order() -> None:
    assert places_of(torch.tensor([False, True, True, False, True])).tolist() == [1, 2, 4]
    assert places_of(torch.zeros(3, dtype=torch.bool)).dtype == torch.int64
    mask = torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.3
    assert torch.equal(places_of(mask), mask.nonzero().squeeze(1))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("by", [1, 9, 49])
def test_places_are_divided_as_whole_numbers_are(dtype: torch.dtype, by: int) -> None:
    places = torch.arange(200, dtype=dtype)
    found = divided(places, by)
    assert found.dtype == dtype
    assert torch.equal(found, places // by)
