"""``autosparse explain``: why a scorer keeps what it keeps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from tqdm import tqdm

from autosparse.cli.options import (
    RUN,
    DataDirOption,
    DatasetOption,
    DeviceOption,
    ForceOption,
    ImageSizeOption,
    MicroBatchOption,
    ModelArgOption,
    ModelOption,
    OnPathsOption,
    ScoreImagesOption,
    ScorerOption,
    SparsityOption,
    SplitSeedOption,
    console,
    help_text,
    network_on_images,
    prune_settings,
    resolve_device,
)
from autosparse.explaining import AUTOS, Explanation, explain
from autosparse.files import SCHEMA_VERSION, atomic_folder, require_absent, write_json
from autosparse.provenance import provenance
from autosparse.pruning import SCORE_BATCH, score_batches

_OTHERS = ("snip", "synflow", "random")


def register(app: typer.Typer) -> None:
    app.command("explain", help=help_text(explain_command))(explain_command)


def explain_command(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    model: ModelOption = "vgg16",
    model_arg: ModelArgOption = None,
    sparsity: SparsityOption = None,
    scorer: ScorerOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="METHOD",
            help="Compare with this method at initialisation. Repeatable.",
            show_default=", ".join(_OTHERS),
        ),
    ] = None,
    on_paths: OnPathsOption = None,
    dataset: DatasetOption = "digits",
    score_images: ScoreImagesOption = 1280,
    micro_batch: MicroBatchOption = SCORE_BATCH,
    image_size: ImageSizeOption = None,
    split_seed: SplitSeedOption = 0,
    data_dir: DataDirOption = Path("data"),
    seed: Annotated[
        int, typer.Option(help="Fixes the initial weights and the images to score with.", rich_help_panel=RUN)
    ] = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Show why the scorer keeps what it keeps of a network: the density of each layer, beside other methods, and what
    each feature is worth.

    Writes densities.png, features.png and explanation.json. A feature's worth is the share of the kept weights that
    change when it is the same for all weights.
    """
    from autosparse.report.figures import layer_density_figure
    from autosparse.report.save import save_figure
    from autosparse.report.worth_figure import worth_figure

    methods = against or list(_OTHERS)
    settings = prune_settings(
        AUTOS, sparsity, None, "weights", at_init=True,
        on_paths=on_paths, scorer=scorer, score_images=score_images, micro_batch=micro_batch,
    )  # fmt: skip
    for method in methods:
        prune_settings(method, sparsity, None, "weights", at_init=True)
    require_absent(out, force)
    where = resolve_device(device)
    network, data = network_on_images(model, model_arg, seed, dataset, data_dir, image_size, split_seed, where)
    assert settings.sparsity is not None  # of single weights
    with tqdm(desc="explain", unit="step", leave=False, disable=None) as bar:

        def progress(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        found = explain(
            network.build_for(data).to(where),
            score_batches(data, seed=seed, images=score_images, size=micro_batch),
            sparsity=settings.sparsity,
            scorer=scorer,
            methods=methods,
            on_paths=on_paths,
            seed=seed,
            progress=progress,
        )
    about = f"{model}, scorer {found.scorer}, {found.kept / found.total:.2%} of the weights kept"
    facts = {"schema_version": SCHEMA_VERSION, "kind": "autosparse-explanation", **found.as_dict()}
    with atomic_folder(out) as folder:
        save_figure(layer_density_figure(found.densities, about), folder / "densities.png")
        save_figure(worth_figure(found.worth, about), folder / "features.png")
        told = {"network": asdict(network), "dataset": dataset, "data": data.describe(), "provenance": provenance()}
        write_json(folder / "explanation.json", {**facts, **told})
    console.print(_feature_table(found))
    console.print(f"{about}\n{_shared_line(found)}\nwrote {out}", highlight=False, soft_wrap=True)


def _feature_table(found: Explanation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("without feature")
    for title in ("mask changed", "between layers", "within layers"):
        table.add_column(title, justify="right")
    for entry in found.worth:
        shares = (entry.changed, entry.between_layers, entry.within_layers)
        table.add_row(entry.feature, *(f"{share:.1%}" for share in shares))
    return table


def _shared_line(found: Explanation) -> str:
    shares = [f"{method} {found.shared[method]:.0%} ({found.chance[method]:.0%})" for method in found.shared]
    return "kept weights shared with others (by chance, given the layers' densities): " + ", ".join(shares)
