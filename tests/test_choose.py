"""Rounds, budgets of other methods, N:M blocks, sanity checks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.budget import select
from autosparse.choose import Choice, choose, like
from autosparse.criteria import CRITERIA, criterion
from autosparse.errors import AutoSparseError, BudgetError, UnknownNameError
from autosparse.granularity import Blocks, parse_granularity
from autosparse.layers import layers_of, prunable
from autosparse.masks import Masks
from autosparse.pruning import prune
from autosparse.recipes import Recipe, list_methods, recipe_of
from autosparse.sanity import rearranged, shuffled
from autosparse.seeding import generator
from autosparse.triggers.init import AtInit

Batch = tuple[Tensor, Tensor]
Net = Callable[..., nn.Module]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights that the criterion ``witness`` (magnitude of the dense weights) saw in each round."""
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))
    weights: list[dict[str, Tensor]] = []

    @criterion("witness", paper="nobody 2000")
    def witness(model: nn.Module, dense: dict[str, Tensor], masks: Masks, keep: int) -> dict[str, Tensor]:
        """Magnitude of the dense weights, turned round in every second round."""
        weights.append({name: weight.detach().clone() for name, weight in prunable(model).items()})
        assert all(torch.equal(weights[-1][name] != 0, masks[name]) for name in masks)
        sign = -1 if len(weights) % 2 == 0 else 1
        return {name: sign * value.abs() for name, value in dense.items()}

    return weights


def counts(weights: dict[str, Tensor]) -> int:
    return sum(int(weight.count_nonzero()) for weight in weights.values())


class TestRounds:
    def test_each_round_scores_what_the_last_one_left(self, chain: Net, seen: list[dict[str, Tensor]]) -> None:
        model = chain(4, 8, 4)  # 64 weights
        before = {name: weight.detach().clone() for name, weight in prunable(model).items()}
        masks, _ = choose(model, Choice("witness", when=AtInit(rounds=3)), 8)
        assert [counts(weights) for weights in seen] == [64, 32, 16]  # (1/8)^(k/3): half in every round
        assert masks.kept == 8
        assert all(torch.equal(weight, before[name]) for name, weight in prunable(model).items())
        for name, mask in masks.items():
            assert not (mask & (seen[2][name] == 0)).any()  # nested

    def test_weights_return_where_the_method_says_so(self, chain: Net, seen: list[dict[str, Tensor]]) -> None:
        masks, _ = choose(chain(4, 8, 4), Choice("witness", when=AtInit(rounds=2, regrow=True)), 8)
        # The second round turns the scores round: it takes the smallest weights, which the first had removed.
        removed = {name: weight == 0 for name, weight in seen[1].items()}
        assert all((mask & ~removed[name]).sum() == 0 for name, mask in masks.items())

    def test_an_error_leaves_the_weights_in_place(self, chain: Net, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))

        @criterion("failing", paper="nobody 2000")
        def failing(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
            """Fails when something has been removed."""
            if masks.density < 1:
                raise AutoSparseError("no")
            return {name: weight.abs() for name, weight in prunable(model).items()}

        model = chain(4, 8, 4)
        before = {name: weight.detach().clone() for name, weight in prunable(model).items()}
        with pytest.raises(AutoSparseError, match="no"):
            choose(model, Choice("failing", when=AtInit(rounds=3)), 8)
        assert all(torch.equal(weight, before[name]) for name, weight in prunable(model).items())

    def test_the_paths_of_densities(self) -> None:
        assert AtInit(4).densities(0.0001) == pytest.approx([0.1, 0.01, 0.001, 0.0001])
        assert AtInit(4, path="linear").densities(0.2) == pytest.approx([0.8, 0.6, 0.4, 0.2])
        # CroPit: sparsity s - (s - 0.5) / 2^i for i = 0..5, then s.
        sparsities = [1 - density for density in AtInit(7, path="halving").densities(0.02)]
        assert sparsities == pytest.approx([0.98 - 0.48 / 2**i for i in range(6)] + [0.98])
        assert AtInit(1, path="halving").densities(0.02) == [0.02]
        assert all(0 < d <= 1 for d in AtInit(7, path="halving").densities(0.9))

    def test_snip_in_rounds_is_nested_and_exact(self, conv_net: Net, two_batches: list[Batch]) -> None:
        model, previous = conv_net(), None
        for rounds in (1, 2, 5):
            masks, _ = choose(
                model, Choice("snip", when=AtInit(rounds=rounds)), 40, batches=two_batches, loss_fn=F.cross_entropy
            )
            assert masks.kept == 40
            assert previous is None or any(not torch.equal(masks[name], previous[name]) for name in masks)
            previous = masks

    def test_settings_out_of_range_are_refused(self) -> None:
        with pytest.raises(AutoSparseError, match="rounds is 0"):
            AtInit(rounds=0)
        with pytest.raises(UnknownNameError, match="did you mean linear"):
            AtInit(path="linaer")


class TestRecipes:
    def test_every_criterion_is_a_method(self, seen: list[dict[str, Tensor]]) -> None:
        assert "witness" in list_methods()
        assert recipe_of("witness") == Recipe("witness")

    def test_options_go_to_the_trigger_and_to_the_criterion(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))

        @criterion("powered", paper="nobody 2000")
        def powered(model: nn.Module, *, power: float = 2.0) -> dict[str, Tensor]:
            """|w| to a power."""
            return {}

        recipe, own = recipe_of("powered").with_options({"rounds": 5, "power": 3})
        assert (recipe.when, own) == (AtInit(rounds=5), {"power": 3})
        with pytest.raises(UnknownNameError, match="unknown option of powered 'round': did you mean rounds"):
            recipe_of("powered").with_options({"round": 5})
        with pytest.raises(AutoSparseError, match="option rounds is 'many': give a value such as 1"):
            recipe_of("powered").with_options({"rounds": "many"})

    def test_a_criterion_of_the_users_own_goes_by_its_path(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: object, conv_net: Net
    ) -> None:
        monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))
        monkeypatch.syspath_prepend(str(tmp_path))
        source = (
            "from autosparse.criteria import criterion\n"
            "from autosparse.layers import prunable\n"
            "@criterion('smallest', paper='nobody 2000')\n"
            "def smallest(model):\n"
            "    'Minus the magnitude.'\n"
            "    return {name: -weight.detach().abs() for name, weight in prunable(model).items()}\n"
        )
        with open(f"{tmp_path}/outside_package.py", "w") as file:
            file.write(source)
        model, reference = conv_net(), conv_net()
        pruned = prune(model, sparsity=0.5, method="outside_package:smallest")
        expected, _ = choose(reference, Choice("magnitude", invert=True), 184)
        assert all(torch.equal(pruned.masks[name], expected[name]) for name in expected)
        assert pruned.summary.criterion == "smallest"

    @pytest.mark.parametrize("name", ["no_such_module:f", "autosparse.masks:nothing", "autosparse.masks:Masks"])
    def test_what_is_no_criterion_is_refused(self, name: str) -> None:
        with pytest.raises(AutoSparseError, match=r"cannot be imported|is no criterion"):
            recipe_of(name)


class TestDensitiesOfAnotherMethod:
    def test_random_weights_in_snips_densities(self, conv_net: Net, two_batches: list[Batch]) -> None:
        snip = prune(conv_net(), two_batches, sparsity=0.7, method="snip").masks
        random = prune(conv_net(), two_batches, sparsity=0.7, method="random", budget="like:snip").masks
        assert random.layer_densities() == snip.layer_densities()
        assert any(not torch.equal(random[name], snip[name]) for name in snip)

    def test_a_method_in_its_own_densities_is_itself(self, conv_net: Net, two_batches: list[Batch]) -> None:
        for method in ("random", "snip"):
            plain = prune(conv_net(), two_batches, sparsity=0.7, method=method).masks
            again = prune(conv_net(), two_batches, sparsity=0.7, method=method, budget=f"like:{method}").masks
            assert all(torch.equal(plain[name], again[name]) for name in plain)

    def test_between_rounds_densities_are_powers(self, chain: Net) -> None:
        model = chain(4, 4, 4)
        layers = layers_of(model)
        first = torch.zeros(4, 4, dtype=torch.bool)
        first[0] = True  # 4 of 16
        second = torch.zeros(4, 4, dtype=torch.bool)
        second[0, 0] = True  # 1 of 16
        allocate = like(Masks({"0.weight": first, "2.weight": second}))
        assert allocate(layers, 5 / 32).tolist() == [1 / 4, 1 / 16]
        half = math.sqrt(5 / 32)
        assert allocate(layers, half) == pytest.approx([1 / 2, 1 / 4])

    def test_an_unknown_method_is_named(self, conv_net: Net) -> None:
        with pytest.raises(UnknownNameError, match="unknown method 'snap'"):
            prune(conv_net(), sparsity=0.5, method="random", budget="like:snap")


class TestBlocks:
    def test_the_two_best_of_every_four_inputs(self) -> None:
        layer = layers_of(nn.Linear(8, 1, bias=False))
        scores = {"weight": torch.tensor([[1.0, 4, 3, 2, 0, 0, 0, 9]])}
        best = Blocks(2, 4).best(scores, layer)["weight"]
        assert best.tolist() == [[False, True, True, False, True, False, False, True]]  # a tie: the lower channel

    def test_blocks_of_a_convolution_lie_along_its_inputs(self) -> None:
        model = nn.Conv2d(4, 2, 3, bias=False)
        scores = {"weight": torch.rand(model.weight.shape, generator=generator(0))}
        best = Blocks(1, 4).best(scores, layers_of(model))["weight"]
        assert torch.equal(best.sum(dim=1), torch.ones(2, 3, 3, dtype=torch.int64))
        assert torch.equal(best, scores["weight"] == scores["weight"].amax(dim=1, keepdim=True))

    @pytest.mark.parametrize("rounds", [1, 4])
    @pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2"])
    def test_every_block_is_exact(self, pattern: str, rounds: int, two_batches: list[Batch], conv_net: Net) -> None:
        keep, size = map(int, pattern.split(":"))
        pruned = prune(
            conv_net(), two_batches, method="snip", granularity=pattern, options={"rounds": rounds}
        )  # stem 3 inputs, depthwise 1: both dense
        classifier = pruned.masks["classifier.weight"]
        assert torch.equal(classifier.reshape(10, 8 // size, size).sum(dim=2), torch.full((10, 8 // size), keep))
        assert pruned.masks["stem.weight"].all()
        assert pruned.masks["depthwise.weight"].all()
        assert pruned.summary.kept == 216 + 72 + 80 * keep // size
        assert pruned.summary.budget == pattern

    def test_a_shuffled_pattern_is_still_one(self, conv_net: Net, two_batches: list[Batch]) -> None:
        plain = prune(conv_net(), two_batches, method="snip", granularity="2:4").masks
        mixed = prune(conv_net(), two_batches, method="snip", granularity="2:4", sanity="shuffle").masks
        assert (mixed["classifier.weight"].reshape(10, 2, 4).sum(dim=2) == 2).all()
        assert not torch.equal(plain["classifier.weight"], mixed["classifier.weight"])

    def test_patterns_that_make_no_sense_are_refused(self, conv_net: Net) -> None:
        for text in ("4:2", "0:4", "4:4", "two:four", "channels"):
            with pytest.raises(AutoSparseError, match="neither 'weights' nor N:M"):
                parse_granularity(text)
        with pytest.raises(BudgetError, match=r"fixes the sparsity at 0\.5, not 0\.9"):
            prune(conv_net(), sparsity=0.9, method="magnitude", granularity="2:4")
        with pytest.raises(BudgetError, match="no sparsity was given"):
            prune(conv_net(), method="magnitude")
        with pytest.raises(AutoSparseError, match="fixes what every layer keeps"):
            prune(conv_net(), method="magnitude", granularity="2:4", budget="erk")


class TestSanity:
    def test_shuffling_keeps_the_layer_counts(self, conv_net: Net, two_batches: list[Batch]) -> None:
        plain = prune(conv_net(), two_batches, sparsity=0.8, method="snip").masks
        mixed = prune(conv_net(), two_batches, sparsity=0.8, method="snip", sanity="shuffle").masks
        assert plain.layer_densities() == mixed.layer_densities()
        assert all(not torch.equal(plain[name], mixed[name]) for name in plain)

    def test_a_shuffle_is_a_uniform_permutation(self) -> None:
        layers = layers_of(nn.Linear(4, 1, bias=False))
        masks = Masks({"weight": torch.tensor([[True, False, False, False]])})
        stream = generator(0, "shuffle")
        places = torch.stack([shuffled(masks, layers, None, stream)["weight"][0] for _ in range(2000)]).float().mean(0)
        assert places.tolist() == pytest.approx([0.25] * 4, abs=4 * math.sqrt(0.25 * 0.75 / 2000))

    def test_what_each_rearrangement_keeps(self) -> None:
        layers = layers_of(nn.Conv2d(12, 10, 3, bias=False))
        masks = Masks({"weight": torch.rand(10, 12, 3, 3, generator=generator(1)) < 0.1})
        counts: dict[str, Callable[[Tensor], Tensor]] = {
            "outputs": lambda mask: mask.sum(dim=(1, 2, 3)),
            "inputs": lambda mask: mask.sum(dim=(0, 2, 3)),
            "kernels": lambda mask: mask.sum(dim=(2, 3)),
            "taps by output": lambda mask: mask.sum(dim=1),
        }
        kept = {
            "shuffle": set(),
            "shuffle-taps": {"outputs", "inputs", "kernels"},
            "shuffle-inputs": {"outputs"},
            "shuffle-outputs": {"inputs"},
            "rewire": {"outputs", "inputs", "taps by output"},
        }
        for name, expected in kept.items():
            moved = rearranged(name, masks, layers, None, generator(2))["weight"]
            found = {what for what, count in counts.items() if torch.equal(count(moved), count(masks["weight"]))}
            assert found == expected, name
            assert int(moved.sum()) == masks.kept
            again = rearranged(name, masks, layers, None, generator(2))["weight"]
            assert torch.equal(moved, again)

    def test_rewiring_reaches_every_graph_of_the_same_degrees_alike(self) -> None:
        layers = layers_of(nn.Linear(3, 3, bias=False))
        masks = Masks({"weight": torch.eye(3, dtype=torch.bool)})  # 6 permutations have these degrees
        stream = generator(0)
        found = [tuple(rearranged("rewire", masks, layers, None, stream)["weight"].int().argmax(1).tolist())
                 for _ in range(1200)]  # fmt: skip
        shares = [found.count(permutation) / 1200 for permutation in itertools.permutations(range(3))]
        assert shares == pytest.approx([1 / 6] * 6, abs=4 * math.sqrt(5 / 36 / 1200))

    def test_a_full_or_an_empty_layer_stays(self) -> None:
        layers = layers_of(nn.Linear(3, 3, bias=False))
        for fill in (True, False):
            masks = Masks({"weight": torch.full((3, 3), fill)})
            for name in ("shuffle", "shuffle-taps", "shuffle-inputs", "shuffle-outputs", "rewire"):
                assert torch.equal(rearranged(name, masks, layers, None, generator(0))["weight"], masks["weight"])

    def test_only_a_shuffle_keeps_a_pattern(self, conv_net: Net) -> None:
        with pytest.raises(AutoSparseError, match="rewire would break the N:M pattern: use shuffle"):
            prune(conv_net(), method="magnitude", granularity="2:4", sanity="rewire")

    def test_inverting_keeps_the_smallest(self, chain: Net) -> None:
        model = chain(4, 4, 4)
        large = select({k: w.detach().abs() for k, w in prunable(model).items()}, layers_of(model), 16)
        small = prune(model, sparsity=0.5, method="magnitude", sanity="invert").masks
        assert all(torch.equal(small[name], ~large[name]) for name in large)

    def test_unknown_checks_are_named(self, conv_net: Net) -> None:
        with pytest.raises(UnknownNameError, match="did you mean shuffle"):
            prune(conv_net(), sparsity=0.5, method="magnitude", sanity="shufle")
        with pytest.raises(AutoSparseError, match="needs to build the network anew"):
            prune(conv_net(), sparsity=0.5, method="magnitude", sanity="reinit")


def test_micro_batches_give_the_gradient_of_the_whole_batch(chain: Net) -> None:
    x = torch.randn(12, 4, generator=generator(1))
    batches = [(x, torch.arange(12) % 4)]
    whole = prune(chain(4, 8, 4).double(), [(x.double(), batches[0][1])], sparsity=0.5, method="snip")
    pieces = prune(chain(4, 8, 4).double(), [(x.double(), batches[0][1])], sparsity=0.5, method="snip", micro_batch=5)
    for name, scores in whole.scores.items():
        assert torch.allclose(scores, pieces.scores[name], rtol=1e-12)
