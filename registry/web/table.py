"""The table of checkpoints: filtered by the where-language, sorted by anything, paged by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import where as where_
from ..formatting import number
from ..output import CHECKPOINT_COLUMNS
from ..output import Column as Listed
from ..records import Checkpoint, Model
from . import views

SIZE: Final = 50
"""The rows of a page."""

NAMED: Final = 200
"""How many models a list of all of them offers to choose from; `where` names any."""

_LISTED: Final[Mapping[str, Listed]] = {column.name: column for column in CHECKPOINT_COLUMNS}

_SORTS: Final = (
    ("REF", "version", True),
    ("DATASET", "dataset", False),
    ("EPOCH", "epoch", True),
    ("ACC", "acc", True),
    ("WRAPPED", "key_style", False),
    ("TOPOLOGY", "strategy", False),
    ("SIZE", "size_bytes", True),
    ("AGE", "created_at", True),
)
"""The columns of `ckreg list`: each one's sort, and whether the highest comes first at first."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column, as it stands in this table.

    Attributes:
        link: to the same list, sorted by it, or the other way round.
        sorted: the value of aria-sort.
    """

    name: str
    cell: Callable[[Checkpoint], str]
    right: bool
    link: str
    sorted: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks a list for, in the words of its URL."""

    model: str | None
    dataset: str | None
    run: str | None
    tag: str | None
    where: str | None
    metric: str | None
    x: str | None

    @classmethod
    def of(cls, request: Request) -> Asked:
        """Read a request."""
        names = ("model", "run", "tag", "where", "metric", "x")
        return cls(dataset=views.dataset_of(request), **{n: views.word(request, n) for n in names})

    @property
    def query(self) -> dict[str, object]:
        """The words of a URL that asks for the same."""
        dataset = views.NO_DATASET if self.dataset == "" else self.dataset
        return {
            "model": self.model, "dataset": dataset, "run": self.run, "tag": self.tag,
            "where": self.where, "metric": self.metric, "x": self.x,
        }  # fmt: skip

    @property
    def words(self) -> dict[str, Any]:
        """The keywords of `Registry.page`, `count` and `course`, the model aside."""
        return {
            "dataset": self.dataset, "run": self.run, "where": self.where,
            "tags": () if self.tag is None else (self.tag,),
        }  # fmt: skip

    @property
    def narrow(self) -> bool:
        """Whether anything but the model is asked for."""
        return any((self.dataset is not None, self.run, self.tag, self.where))


def checkpoints(request: Request) -> Response:
    """Show the checkpoints that match, newest first unless it is said otherwise."""
    reg, asked = views.registry_of(request), Asked.of(request)
    sort = views.word(request, "sort") or "-created_at"
    after = views.word(request, "after")
    mistake = _mistake(asked.where)
    names = [*reg.sizes()] if asked.model is None else []
    known = names[:NAMED] if asked.model is None else [asked.model]
    models = reg.models(known)
    model = next(iter(models), None) if asked.model else None
    found: tuple[Checkpoint, ...] = ()
    following = total = None
    if mistake is None:
        page = reg.page(asked.model, **asked.words, sort=sort, size=SIZE, after=after)
        found = page.checkpoints
        if page.next is not None:
            following = views.url("/checkpoints", **asked.query, sort=sort, after=page.next)
        if after is None and page.next is None:
            total = len(found)
        elif asked.where is None:
            total = reg.count(asked.model, **asked.words)
    plain = {**asked.query, "where": None} if mistake else asked.query
    return views.render(
        request,
        "checkpoints.html",
        status=400 if mistake else 200,
        asked=asked,
        model=model,
        names=names[:NAMED],
        more=max(0, len(names) - NAMED),
        choices=reg.choices(asked.model),
        datasets=_datasets(models, model),
        metric=_metric(asked, model),
        standing=None if model is None else reg.standings([model.name]).get(model.name),
        columns=_columns(asked, model, sort),
        sort=sort,
        found=found,
        total=total,
        next=following,
        first=None if after is None else views.url("/checkpoints", **asked.query, sort=sort),
        counted=views.url("/count", **plain),
        chart=None if model is None else views.url("/chart.json", **plain),
        mistake=mistake,
    )


def count(request: Request) -> Response:
    """Say how many checkpoints match: a list whose filter no index serves shows it later."""
    reg, asked = views.registry_of(request), Asked.of(request)
    return views.render(request, "count.html", total=reg.count(asked.model, **asked.words))


def _mistake(expression: str | None) -> str | None:
    """Return what is wrong with an expression, its place marked, or None."""
    if expression is None:
        return None
    try:
        where_.parse(expression)
    except ValueError as error:
        return str(error)
    return None


def _datasets(models: list[Model], model: Model | None) -> list[str | None]:
    if model is not None:
        return list(model.datasets)
    found = {name for one in models for name in one.datasets}
    return sorted(found, key=lambda name: (name is None, name or ""))


def _metric(asked: Asked, model: Model | None) -> str:
    return asked.metric or ("acc" if model is None else model.metric)


def _columns(asked: Asked, model: Model | None, sort: str) -> list[Column]:
    columns: list[Column] = []
    for name, key, descending in _SORTS:
        by = "model" if name == "REF" and asked.model is None else key
        listed = _LISTED[name]
        columns.append(_column(asked, sort, name, listed.shown, listed.right, by, descending))
    metric = _metric(asked, model)
    if metric != "acc":
        descending = model is None or metric != model.metric or model.mode == "max"
        columns.insert(
            4,
            _column(
                asked, sort, metric, _value_of(metric), True, f"metrics.{metric}", descending
            ),
        )  # fmt: skip
    return columns


def _column(
    asked: Asked, sort: str, name: str, cell: Callable[[Checkpoint], str], right: bool, by: str,
    descending: bool,
) -> Column:  # fmt: skip
    is_sorted = sort.removeprefix("-") == by
    down = not sort.startswith("-") if is_sorted else descending
    return Column(
        name,
        cell,
        right,
        views.url("/checkpoints", **asked.query, sort=f"{'-' if down else ''}{by}"),
        "none" if not is_sorted else "descending" if sort.startswith("-") else "ascending",
    )


def _value_of(metric: str) -> Callable[[Checkpoint], str]:
    return lambda ckpt: number(ckpt.metrics.get(metric))


ROUTES: Final = [Route("/checkpoints", checkpoints), Route("/count", count)]
