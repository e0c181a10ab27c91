"""Registries refuse duplicates, list sorted, and suggest the nearest name on a miss; seeds give independent streams."""

from __future__ import annotations

import json
import random

import pytest
import torch

from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.provenance import provenance
from autosparse.registry import Registry
from autosparse.seeding import derive_seed, generator, global_stream


def colours() -> Registry[int]:
    registry: Registry[int] = Registry("colour", hint="or mix your own")
    registry.add("red", 1)
    registry.add("blue", 2)
    registry.register("green")(3)
    return registry


def test_entries_are_found_and_listed_in_order_of_name() -> None:
    registry = colours()
    assert registry.get("green") == 3
    assert registry.names() == ["blue", "green", "red"]
    assert list(registry.items()) == [("blue", 2), ("green", 3), ("red", 1)]
    assert "red" in registry
    assert "pink" not in registry


def test_a_second_definition_is_refused_and_the_first_stays() -> None:
    registry = colours()
    with pytest.raises(ValueError, match="colour 'red' is already defined"):
        registry.add("red", 9)
    with pytest.raises(ValueError, match="colour 'green' is already defined"):
        registry.register("green")(9)
    assert (registry.get("red"), registry.get("green")) == (1, 3)


def test_a_miss_suggests_the_nearest_name() -> None:
    with pytest.raises(
        UnknownNameError, match=r"^unknown colour 'bleu': did you mean blue\?; or mix your own$"
    ) as info:
        colours().get("bleu")
    assert info.value.near == ["blue"]
    assert isinstance(info.value, AutoSparseError)


def test_a_miss_without_a_near_name_lists_all() -> None:
    with pytest.raises(UnknownNameError, match="known: blue, green, red"):
        colours().get("xyzzy")


def test_a_miss_in_an_empty_registry_says_so() -> None:
    with pytest.raises(UnknownNameError, match="known: none"):
        Registry("colour").get("red")


def test_derived_seeds_are_fixed_distinct_and_fit_a_generator() -> None:
    seeds = [derive_seed(seed, *stream) for seed in range(3) for stream in ((), ("a",), ("b",), ("a", 1), ("a", 11))]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [derive_seed(s, *stream) for s in range(3) for stream in ((), ("a",), ("b",), ("a", 1), ("a", 11))]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Written out, so that files of one release mean the same in the next.
    assert derive_seed(0, "init") == 3912388711783151084


def test_a_generator_repeats_its_stream() -> None:
    first, again, other = (torch.rand(4, generator=generator(0, name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_global_stream_leaves_the_callers_rng_as_it_was() -> None:
    torch.manual_seed(random.Random(0).randrange(1000))
    before = torch.get_rng_state()
    with global_stream(0, "block"):
        inside = torch.rand(3)
    with global_stream(0, "block"):
        assert torch.equal(torch.rand(3), inside)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), global_stream(0, "block"):
        raise KeyError(torch.rand(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_provenance_is_json_and_names_what_ran() -> None:
    facts = json.loads(json.dumps(provenance()))
    assert facts["versions"]["torch"] == torch.__version__ or torch.__version__.startswith(facts["versions"]["torch"])
    assert {"python", "torch", "numpy", "h5py"} <= facts["versions"].keys()
    assert facts["threads"] == torch.get_num_threads()
    assert isinstance(facts["source_revision"], str)
    assert provenance() == facts
