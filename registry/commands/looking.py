"""Commands that only read: list, models, best, show, plan, diff, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from .. import pages
from ..errors import NotFoundError
from ..records import Checkpoint, Mode
from ..values import size_bytes
from .session import (
    Session,
    answers,
    complete_model,
    complete_ref,
    dataset_option,
    json_option,
    ref_argument,
    registry_option,
    takes_session,
)

if TYPE_CHECKING:
    from ..planning import LoadPlan
    from ..plotting import Curves
    from ..registry import Registry

_HELD = 20

MODEL = click.argument("model", metavar="MODEL", shell_complete=complete_model)
RUN = click.option("--run", metavar="NAME", help="Of this training job.")
DATASET = click.option("--dataset", metavar="NAME", help="Trained on this.")


@click.command("list")
@click.argument("model", metavar="[MODEL]", required=False, shell_complete=complete_model)
@click.option("--where", metavar="EXPR", help="""E.g. 'acc > 0.9 and strategy == "ddp"'.""")
@DATASET
@RUN
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="With this tag; repeatable.")
@click.option(
    "--sort",
    metavar="FIELD",
    default="-created_at",
    help="Any column or metric; a '-' in front puts the highest first. Default: newest first.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=50,
    metavar="N",
    help="How many; 0 is all. Default: 50.",
)
@click.option("--after", metavar="PLACE", help="The page after: `next` of the --json answer.")
@click.option("--removed", is_flag=True, help="Removed ones too.")
@click.option("--fits", metavar="REF", help="With the same tensors as this one, however wrapped.")
@click.option("--loadable", is_flag=True, help="Whose weights fit whole in --memory or --device.")
@click.option("--memory", metavar="SIZE", help="How much there is, e.g. 24GB.")
@click.option("--device", metavar="NAME", help="What is free on it now, e.g. cuda:0 or cpu.")
@click.option(
    "--plot", is_flag=False, flag_value="acc", metavar="[METRIC]",
    help="Draw a metric over the epochs, a line for each run. Default: acc.",
)  # fmt: skip
@answers
@click.pass_context
def list_(
    context: click.Context,
    session: Session,
    model: str | None,
    *,
    where: str | None,
    dataset: str | None,
    run: str | None,
    tags: tuple[str, ...],
    sort: str,
    limit: int,
    after: str | None,
    removed: bool,
    fits: str | None,
    loadable: bool,
    memory: str | None,
    device: str | None,
    plot: str | None,
) -> None:
    """List checkpoints, newest first.

    In a pipe: a line each, tab-separated, without a header. WRAPPED is how the live model's keys
    were wrapped; a '?' there marks what was inferred from a file, not recorded.

    \b
    Example:
      ckreg list resnet50 --where 'acc > 0.9' --sort -acc
    """
    if loadable != (memory is not None or device is not None) or (memory and device):
        raise click.UsageError("--loadable goes with one of --memory SIZE and --device NAME")
    room = None if memory is None else size_bytes(memory)
    fits = None if fits is None else session.ref(fits)
    with session.open() as reg:
        if device is not None:
            room = reg.free_memory(device)
        asked: Any = {
            "dataset": dataset, "run": run, "where": where, "tags": tags,
            "include_removed": removed, "memory": room, "fits": fits,
        }  # fmt: skip
        if plot is not None:
            if context.get_parameter_source("limit") is not ParameterSource.DEFAULT:
                asked["limit"] = limit or None
            session.out.chart(_curves(session, reg, model, plot, asked))
            return
        if limit:
            page = reg.page(model, sort=sort, size=limit, after=after, **asked)
            found, next_ = iter(page.checkpoints), page.next
        elif after is None:
            found, next_ = reg.find(model, sort=sort, **asked), None
        else:
            raise click.UsageError("--after names a page's place: give --limit as well")
        session.out.checkpoints(
            found,
            next=next_,
            total=lambda: reg.count(model, **asked),
            removed=removed,
            sort=sort,
            location=reg.location if reg.exists else f"{reg.location}, which isn't there yet",
        )


def _curves(
    session: Session, reg: Registry, model: str | None, metric: str, asked: dict[str, Any]
) -> Curves:
    """Return what to draw of a metric.

    Raises:
        click.UsageError: another form is asked for too.
        NotFoundError: nothing that was found has the metric, at an epoch or a step.
    """
    from .. import plotting

    if session.form is not None:
        raise click.UsageError("--plot draws a picture; --json and --quiet are for programs")
    known = {m.name: m for m in reg.models()}
    of = [known[model]] if model in known else known.values()
    modes = {m.mode if m.metric == metric else "max" if metric == "acc" else None for m in of}
    found = plotting.curves(
        reg.find(model, **asked), metric, modes.pop() if len(modes) == 1 else None
    )
    if found is None:
        hint = "see what there is: ckreg list --json"
        if metric in known:
            hint = f"{metric!r} is a model; write it first: ckreg list {metric} --plot"
        raise NotFoundError(
            f"no checkpoint of these has the metric {metric!r} at an epoch or a step", hint=hint
        )
    return found


@click.command()
@answers
def models(session: Session) -> None:
    """List the models: versions, datasets, and what best means.

    \b
    Example:
      ckreg models
    """
    with session.open() as reg:
        session.out.models(reg.models())


@click.command()
@MODEL
@DATASET
@click.option("--metric", metavar="NAME", help="Default: the model's monitor, acc until it is set.")
@click.option("--mode", type=click.Choice(["max", "min"]), help="Whether more or less is better.")
@RUN
@answers
def best(
    session: Session,
    model: str,
    *,
    dataset: str | None,
    metric: str | None,
    mode: Mode | None,
    run: str | None,
) -> None:
    """Show a model's best checkpoint.

    \b
    Example:
      ckreg best resnet50 --dataset cifar10
    """
    with session.open() as reg:
        ckpt = reg.best(model, dataset=dataset, metric=metric, mode=mode, run=run)
        if metric is None or mode is None:
            monitor = next(m for m in reg.models() if m.name == ckpt.model)
            metric, mode = metric or monitor.metric, mode or monitor.mode
    session.out.page(pages.best(ckpt, metric, mode), ckpt.to_dict())


@click.command()
@ref_argument
@dataset_option
@answers
def show(session: Session, ref: str, *, dataset: str | None) -> None:
    """Show everything that is recorded of a checkpoint.

    \b
    Example:
      ckreg show resnet50@v12
    """
    out = session.out
    with session.open() as reg:
        found = [reg.get(r, dataset=dataset) for r in session.refs(ref)]

        def one(ckpt: Checkpoint) -> None:
            out.page(_page(reg, ckpt), ckpt.to_dict())

        if ref == "-":
            out.each("checkpoints", found, one, Checkpoint.to_dict, next=None)
        else:
            one(found[0])


def _page(reg: Registry, ckpt: Checkpoint) -> pages.Page:
    return pages.checkpoint(
        ckpt,
        reg.signature(ckpt),
        parent=_parent(reg, ckpt),
        children=[f"{c.ref} (removed)" if c.removed_at else c.ref for c in reg.children(ckpt)],
        best=_is_best(reg, ckpt),
    )


def _is_best(reg: Registry, ckpt: Checkpoint) -> bool:
    try:
        return reg.best(ckpt.model, dataset=ckpt.dataset or "").id == ckpt.id
    except NotFoundError:  # none has the metric that counts
        return False


def _parent(reg: Registry, ckpt: Checkpoint) -> str | None:
    """Return the ref of the checkpoint that one continues; the id where it isn't known here."""
    if ckpt.parent is None:
        return None
    try:
        return reg.get(ckpt.parent).ref
    except NotFoundError:
        return f"{ckpt.parent} (removed, or of another registry)"


@click.command()
@ref_argument
@dataset_option
@click.option("--device", metavar="NAME", help="Where to, e.g. cpu or cuda:1; need not be here.")
@click.option("--keys", metavar="STYLE", help="How the file's keys are wrapped, if it can't say.")
@click.option("--wrapped", metavar="STYLE", help="How the net is wrapped, e.g. 'module.' for DDP.")
@click.option("--weights", type=click.Choice(["live", "ema"]), help="Which of two, if it has both.")
@answers
def plan(
    session: Session,
    ref: str,
    *,
    dataset: str | None,
    device: str | None,
    keys: str | None,
    wrapped: str | None,
    weights: Literal["live", "ema"] | None,
) -> None:
    """Show how a load would go, why, and the same by hand in Python.

    \b
    Example:
      ckreg plan resnet50@best --device cpu
    """
    out = session.out
    with session.open() as reg, out.progress(f"plan {ref}"):
        made = [
            reg.plan(r, dataset=dataset, device=device, keys=keys, wrapped=wrapped, weights=weights)
            for r in session.refs(ref)
        ]

    def one(plan: LoadPlan) -> None:
        out.text(str(plan), plan.to_dict(), plan.ref)

    if ref == "-":
        out.each("plans", made, one, lambda plan: plan.to_dict())
    else:
        one(made[0])


@click.command()
@click.argument("a", metavar="A", shell_complete=complete_ref)
@click.argument("b", metavar="B", shell_complete=complete_ref)
@json_option
@registry_option
@takes_session
def diff(session: Session, a: str, b: str) -> None:
    """Show how B differs from A: facts, keys, and numbers by module.

    \b
    Example:
      ckreg diff resnet50@v11 resnet50@best
    """
    out = session.out
    a, b = session.ref(a), session.ref(b)
    with session.open() as reg, out.progress(f"diff {a} {b}") as progress:
        found = reg.diff(a, b, progress=progress)
    out.text(str(found), found.to_dict(), found.b.ref)


@click.command()
@click.argument("new", metavar="NEW", shell_complete=complete_ref)
@click.argument("base", metavar="BASE", shell_complete=complete_ref)
@click.option(
    "--fail-if", "condition", metavar="EXPR", help="Exit with 20 if it holds: 'acc < base.acc'."
)
@json_option
@registry_option
@takes_session
@click.pass_context
def compare(
    context: click.Context, session: Session, new: str, base: str, *, condition: str | None
) -> None:
    """Compare the metrics of NEW with those of BASE.

    With --fail-if it is a gate: exits with 20 when the condition holds, and with 3 when one of the
    two lacks what the condition speaks of. `base.FIELD` is a value of BASE; a number may be added,
    taken off or multiplied: 'acc < base.acc - 0.005'.

    \b
    Example:
      ckreg compare resnet50@best resnet50@release --fail-if 'acc < base.acc'
    """
    from ..comparing import compare

    new, base = session.ref(new), session.ref(base)
    with session.open() as reg:
        found = compare(reg.get(new), reg.get(base), condition)
    session.out.comparison(found)
    if found.holds:
        context.exit(_HELD)
