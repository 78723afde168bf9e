"""Commands that move files in and out: push, import, pull, export."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from ..topology import STRATEGIES
from .session import (
    Session,
    answers,
    assignments,
    dataset_option,
    json_option,
    ref_argument,
    registry_option,
    takes_session,
)

if TYPE_CHECKING:
    from ..handle import Ref
    from ..registry import Registry

FILE = click.Path(path_type=Path)
_REF: Final = re.compile(r"[^@]+@(v[0-9]+|best|latest|epoch=[0-9]+)")


@click.command()
@click.argument("path", type=FILE)
@click.option("--model", metavar="NAME", help="The model's name.")
@click.option("--dataset", metavar="NAME", help="What it was trained on.")
@click.option("--run", metavar="NAME", help="The training job; the same name continues it.")
@click.option("--epoch", type=int, metavar="N")
@click.option("--step", type=int, metavar="N")
@click.option("--acc", type=float, metavar="X", help="Accuracy, on the scale that you use.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME=VALUE",
    callback=assignments,
    help="Another metric; repeatable.",
)
@click.option("--keys", metavar="STYLE", help="How the file's keys are wrapped: '', module., …")
@click.option(
    "--strategy", type=click.Choice(STRATEGIES), metavar="NAME", help=", ".join(STRATEGIES) + "."
)
@click.option("--world-size", type=int, metavar="N", help="The processes that trained it.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Repeatable.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="Repeatable; moves here.")
@click.option("--note", metavar="TEXT")
@click.option("--move", is_flag=True, help="Remove PATH once its bytes are recorded.")
@answers
def push(
    session: Session,
    path: Path,
    *,
    model: str | None,
    dataset: str | None,
    run: str | None,
    epoch: int | None,
    step: int | None,
    acc: float | None,
    metrics: dict[str, float],
    keys: str | None,
    strategy: str | None,
    world_size: int | None,
    tags: tuple[str, ...],
    aliases: tuple[str, ...],
    note: str | None,
    move: bool,
) -> None:
    """Record a checkpoint; what isn't said is read from it.

    Of one file or folder; many below a folder at once: ckreg import DIR.

    \b
    Example:
      ckreg push resnet50-best.pth --dataset cifar10 --metric val/loss=0.21
    """
    out = session.out
    with session.open() as reg, out.progress(f"push {path.name}") as progress:
        ckpt = reg.push(
            path,
            model=model,
            dataset=dataset,
            run=run,
            epoch=epoch,
            step=step,
            acc=acc,
            metrics=metrics,
            keys=keys,
            strategy=strategy,
            world_size=world_size,
            tags=tags,
            aliases=aliases,
            note=note,
            move=move,
            progress=progress,
        )
    out.written(reg.location, ckpt)


@click.command("import")
@click.argument("source", metavar="DIR|mlflow:URI")
@click.option("--model", metavar="NAME", help="Of all; default: as each says, or is named.")
@click.option("--dataset", metavar="NAME", help="What they were trained on.")
@click.option("--run", metavar="NAME", help="The training job; the same name continues it.")
@click.option(
    "--experiment", "experiments", multiple=True, metavar="NAME", help="MLflow's; repeatable."
)
@click.option("--acc-from", metavar="METRIC", help="MLflow's metric that is the accuracy.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Repeatable.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and stop.")
@answers
@click.pass_context
def import_(
    context: click.Context,
    session: Session,
    source: str,
    *,
    model: str | None,
    dataset: str | None,
    run: str | None,
    experiments: tuple[str, ...],
    acc_from: str | None,
    tags: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Record every checkpoint below a folder, or of an MLflow store.

    Facts that only a file's name says, or MLflow without its step, are marked with a '?'. A second
    run adds nothing. Exits with 1 when a checkpoint didn't go in; what is no checkpoint is passed
    over.

    \b
    Example:
      ckreg import runs --dataset cifar10 --dry-run
      ckreg import mlflow:sqlite:///mlflow.db --acc-from val_accuracy
    """
    uri = source.removeprefix("mlflow:")
    if uri == source and (experiments or acc_from):
        raise click.UsageError("--experiment and --acc-from are of an MLflow store: mlflow:URI")
    if uri != source and run:
        raise click.UsageError("--run is of a folder: MLflow's own runs are taken over")
    out = session.out
    with session.open() as reg:
        with out.progress(
            f"import {source}" if uri == source else "import from MLflow"
        ) as progress:
            if uri == source:
                done = reg.import_(
                    Path(source), model=model, dataset=dataset, run=run, tags=tags,
                    dry_run=dry_run, progress=progress,
                )  # fmt: skip
            else:
                done = reg.import_mlflow(
                    uri, model=model, dataset=dataset, experiments=experiments, acc_from=acc_from,
                    tags=tags, dry_run=dry_run, progress=progress,
                )  # fmt: skip
        out.imported(done, reg.location)
    if done.failed:
        context.exit(1)


@click.command()
@ref_argument
@click.argument("dest", type=FILE, required=False)
@click.option("-o", "--output", type=FILE, metavar="DEST", help="The same as DEST.")
@click.option("--device", metavar="NAME", help="Tag the tensors for cpu, cuda:1, …")
@click.option("--keys", metavar="STYLE", help="Write keys plain, recorded, or as module., …")
@click.option("--only", type=click.Choice(["weights"]), help="The state dict and nothing else.")
@click.option("--weights", type=click.Choice(["live", "ema"]), help="Which of two, if it has both.")
@click.option(
    "--format", type=click.Choice(["pt", "safetensors"]), help="Default: as DEST is named."
)
@dataset_option
@click.option("--force", is_flag=True, help="Replace another file at DEST.")
@json_option
@registry_option
@takes_session
def pull(
    session: Session,
    ref: str,
    dest: Path | None,
    *,
    output: Path | None,
    device: str | None,
    keys: str | None,
    only: Literal["weights"] | None,
    weights: Literal["live", "ema"] | None,
    format: Literal["pt", "safetensors"] | None,
    dataset: str | None,
    force: bool,
) -> None:
    """Write a checkpoint out, as stored or adapted.

    DEST's name says what it is to be: .safetensors; .pt, .pth, .ckpt or .bin for torch.

    \b
    Example:
      ckreg pull resnet50@best --device cpu --keys plain -o model.pt
    """
    if dest is not None and output not in (None, dest):
        raise click.UsageError(f"two places are named: {str(dest)!r} and {str(output)!r}")
    if output is None and dest is not None and _REF.fullmatch(str(dest)):
        raise click.UsageError(
            f"{str(dest)!r} reads as a ref, and one is pulled at a time; several into a folder: "
            f"printf '%s\\n' {shlex.quote(ref)} {dest} | ckreg pull - DIR; to a file of that name: "
            f"-o {dest}"
        )
    dest = dest if dest is not None else output
    out = session.out

    def pulled(reg: Registry, one: Ref) -> Path:
        with out.progress(f"pull {one if isinstance(one, str) else one.ref}") as progress:
            return reg.pull(
                one,
                dest,
                device=device,
                keys=keys,
                only=only,
                weights=weights,
                format=format,
                dataset=dataset,
                force=force,
                progress=progress,
            )

    if ref != "-":
        with session.open() as reg:
            out.path(pulled(reg, ref))
        return
    if dest is not None and not dest.is_dir():
        place = shlex.quote(str(dest))
        raise click.UsageError(f"refs from stdin are pulled into a folder: mkdir {place}")
    with session.open() as reg:  # all are looked up before the first byte comes
        found = {c.id: c for c in (reg.get(r, dataset=dataset) for r in session.refs(ref))}
        out.paths(pulled(reg, ckpt) for ckpt in found.values())


@click.command()
@ref_argument
@click.option("-o", "--output", type=FILE, metavar="DIR", required=True, help="The new folder.")
@click.option(
    "--format", type=click.Choice(["safetensors", "pt"]), default="safetensors",
    help="Default: safetensors.",
)  # fmt: skip
@click.option("--shard-size", metavar="SIZE", help="Files of at most this: 5GB. Default: one file.")
@click.option("--keys", metavar="STYLE", help="Write keys plain, recorded, or as module., …")
@click.option("--weights", type=click.Choice(["live", "ema"]), help="Which of two, if it has both.")
@dataset_option
@click.option("--public", is_flag=True, help="Leave out author, hosts and command line.")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@json_option
@registry_option
@takes_session
def export(
    session: Session,
    ref: str,
    *,
    output: Path,
    format: Literal["safetensors", "pt"],
    shard_size: str | None,
    keys: str | None,
    weights: Literal["live", "ema"] | None,
    dataset: str | None,
    public: bool,
    force: bool,
) -> None:
    """Write the weights into a folder, whole or in shards.

    Names and index are those that transformers reads; beside them lie ckreg.json, the record, and
    README.md, a model card as the Hugging Face Hub reads it.

    \b
    Example:
      ckreg export resnet50@best --format safetensors --shard-size 5GB -o resnet50
    """
    out = session.out
    ref = session.ref(ref)
    with session.open() as reg:
        with out.progress(f"export {ref}") as progress:
            path = reg.export(
                ref,
                output,
                format=format,
                shard_size=shard_size,
                keys=keys,
                weights=weights,
                dataset=dataset,
                public=public,
                force=force,
                progress=progress,
            )
        out.path(path)
