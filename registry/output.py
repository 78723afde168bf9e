"""The one sink that a command answers to: table, tab-separated fields, JSON, or refs alone.

Law: stdout is the answer and nothing else; progress, hints, totals and the registry's name go to
stderr. A terminal gets an aligned table with a header; a pipe gets one line a record, whole values
separated by tabs, no header. Nothing from a file or a database reaches a terminal raw. Knows no
command and no query.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, TypeVar

from . import plotting, terminal
from .formatting import age, change, count, field, flat, number, size, visible
from .pages import Page
from .records import Checkpoint, Model
from .values import FORMAT, time_text
from .where import COLUMNS as SORTS

if TYPE_CHECKING:
    from .comparing import Comparison
    from .drafting import Given
    from .importing import ImportedFile, ImportResult
    from .plotting import Curves
    from .pruning import PrunePlan
    from .retention import Verdict
    from .schema import Upgrade
    from .verifying import Finding, Verification

T = TypeVar("T")

Form = Literal["table", "tabs", "json", "refs"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a list.

    Attributes:
        shown: the cell of the terminal's table.
        value: the whole value, for the tab-separated form.
        gives: may be shortened on a narrow terminal; a ref never is, because it gets pasted.
        kind: what its cells are, for their colour; one of `terminal.STYLES`.
    """

    name: str
    shown: Callable[[Any], str]
    value: Callable[[Any], object]
    right: bool = False
    gives: bool = False
    kind: str = ""


def _or_dash(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def _wrapped(ckpt: Checkpoint) -> str:
    if ckpt.provenance.key_style == "unknown":
        return "?"
    mark = "?" if ckpt.provenance.key_style == "inferred" else ""
    return f"{ckpt.key_style}{mark}" if ckpt.key_style else "-"


CHECKPOINT_COLUMNS: Final = (
    Column("REF", lambda c: c.ref, lambda c: c.ref, kind="ref"),
    Column("DATASET", lambda c: _or_dash(c.dataset), lambda c: c.dataset, gives=True),
    Column("EPOCH", lambda c: _or_dash(c.epoch), lambda c: c.epoch, right=True),
    Column("ACC", lambda c: number(c.acc), lambda c: c.acc, right=True),
    Column("WRAPPED", _wrapped, lambda c: c.key_style, gives=True),
    Column("TOPOLOGY", lambda c: c.topology.short(), lambda c: c.topology.short(), gives=True),
    Column("SIZE", lambda c: size(c.size_bytes), lambda c: c.size_bytes, right=True),
    Column(
        "AGE",
        lambda c: age(c.created_at),
        lambda c: time_text(c.created_at),
        right=True,
        kind="dim",
    ),
)

REMOVED_COLUMN: Final = Column(
    "REMOVED",
    lambda c: age(c.removed_at) if c.removed_at else "-",
    lambda c: time_text(c.removed_at) if c.removed_at else None,
    right=True,
)

MODEL_COLUMNS: Final = (
    Column("MODEL", lambda m: m.name, lambda m: m.name, kind="ref"),
    Column("VERSIONS", lambda m: str(m.versions), lambda m: m.versions, right=True),
    Column("LIVE", lambda m: str(m.checkpoints), lambda m: m.checkpoints, right=True),
    Column(
        "DATASETS",
        lambda m: ", ".join(d or "-" for d in m.datasets) or "-",
        lambda m: ",".join(d or "" for d in m.datasets),
        gives=True,
    ),
    Column("BEST BY", lambda m: f"{m.metric} {m.mode}", lambda m: f"{m.metric} {m.mode}"),
)


def _imported_facts(file: ImportedFile) -> Checkpoint | Given | None:
    return file.checkpoint or file.known


def _guessed(name: str) -> Callable[[ImportedFile], str]:
    """Return the cell of a fact of an imported file, a '?' behind what only its name says."""

    def cell(file: ImportedFile) -> str:
        value = getattr(_imported_facts(file), name, None)
        return "-" if value is None else f"{value}{'?' if name in file.from_name else ''}"

    return cell


def _metrics(file: ImportedFile) -> str:
    facts = _imported_facts(file)
    return ", ".join(
        f"{name} {number(value)}{'?' if f'metrics.{name}' in file.from_name else ''}"
        for name, value in ({} if facts is None else facts.metrics).items()
    )


IMPORTED_COLUMNS: Final = (
    Column("FILE", lambda f: f.path, lambda f: f.path),
    Column("IS", lambda f: f.outcome, lambda f: f.outcome),
    Column(
        "REF",
        lambda f: f.checkpoint.ref if f.checkpoint else _guessed("model")(f),
        lambda f: f.checkpoint.ref if f.checkpoint else None,
    ),
    Column("DATASET", _guessed("dataset"), _guessed("dataset"), gives=True),
    Column("EPOCH", _guessed("epoch"), _guessed("epoch"), right=True),
    Column("STEP", _guessed("step"), _guessed("step"), right=True),
    Column("METRICS", lambda f: _metrics(f) or "-", _metrics, gives=True),
    Column("SIZE", lambda f: size(f.size_bytes), lambda f: f.size_bytes, right=True),
)

COMPARED_COLUMNS: Final = (
    Column("METRIC", lambda c: c.name, lambda c: c.name, gives=True),
    Column("NEW", lambda c: number(c.new), lambda c: c.new, right=True),
    Column("BASE", lambda c: number(c.base), lambda c: c.base, right=True),
    Column("CHANGE", lambda c: change(c.change), lambda c: c.change, right=True),
)

FINDING_COLUMNS: Final = (
    Column("KIND", lambda f: f.kind, lambda f: f.kind),
    Column("IS", lambda f: _grade(f), lambda f: _grade(f)),
    Column("WHERE", lambda f: f.where, lambda f: f.where),
    Column("WHAT", lambda f: f.what, lambda f: f.what),
    Column("MEND", lambda f: f.mend, lambda f: f.mend),
)


VERDICT_COLUMNS: Final = (
    Column("REF", lambda v: v.ref, lambda v: v.ref),
    Column("DATASET", lambda v: _or_dash(v.dataset), lambda v: v.dataset, gives=True),
    Column("EPOCH", lambda v: _or_dash(v.epoch), lambda v: v.epoch, right=True),
    Column("IT", lambda v: _fate(v), lambda v: _fate(v)),
    Column("WHY", lambda v: v.why, lambda v: v.why, gives=True),
    Column("SIZE", lambda v: size(v.size_bytes), lambda v: v.size_bytes, right=True),
)


def _fate(verdict: Verdict) -> str:
    return "stays" if verdict.kept else "goes"


def _grade(finding: Finding) -> str:
    return "damage" if finding.damage else "remark"


def _metric_columns(sort: str) -> list[Column]:
    """Return the column of the metric that a list is sorted by, if it is one beside acc."""
    name = sort.removeprefix("-")
    if name == "acc" or name in SORTS:
        return []
    name = name.removeprefix("metrics.").strip('"')
    return [
        Column(
            name.upper(),
            lambda c: number(c.metrics.get(name)),
            lambda c: c.metrics.get(name),
            right=True,
        )
    ]


class Output:
    """Where one command's answer goes, and in which form."""

    def __init__(
        self, stdout: TextIO, stderr: TextIO, *, form: Form = "table", columns: int | None = None
    ) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._form: Form = form
        self._columns = columns or shutil.get_terminal_size((100, 24)).columns

    # --- stdout ---------------------------------------------------------------------------------

    def checkpoints(
        self,
        found: Iterable[Checkpoint],
        *,
        next: str | None = None,
        total: Callable[[], int],
        removed: bool = False,
        sort: str = "-created_at",
        location: str = "",
    ) -> None:
        """Print a list of checkpoints as they come, and on stderr the total when it was cut.

        Args:
            next: where the list goes on, or None where it is whole.
            total: counts all of them; called only when the list was cut.
            removed: show when each was removed.
            sort: what they are sorted by; a metric gets a column of its own.
            location: the registry that was asked, to be named where it has none.
        """
        printed = 0

        def counted() -> Iterator[Checkpoint]:
            nonlocal printed
            for ckpt in found:
                printed += 1
                yield ckpt

        if self._form == "json":
            self._stdout.write(f'{{"format": {FORMAT}, "checkpoints": [')
            for ckpt in counted():
                self._stdout.write(("\n" if printed == 1 else ",\n") + _json(ckpt.to_dict()))
            self._stdout.write(f'\n], "next": {_json(next)}}}\n')
        else:
            columns = [*CHECKPOINT_COLUMNS]
            columns[4:4] = _metric_columns(sort)
            if removed:
                columns.append(REMOVED_COLUMN)
            self._rows(counted(), columns, lambda c: c.ref)
        if next is not None:
            self.note(f"{printed:,} of {total():,} shown; all of them: --limit 0")
        elif not printed:
            self.note(f"no checkpoints in {location}" if location else "no checkpoints")

    def models(self, models: Sequence[Model]) -> None:
        """Print the models with their counts and what best means for each."""
        if self._form == "json":
            self._document({"models": [_model(m) for m in models]})
            return
        self._rows(models, MODEL_COLUMNS, lambda m: m.name)
        if not models:
            self.note("no models yet; the first: ckreg push FILE --model NAME")

    def page(self, page: Page, document: Mapping[str, object]) -> None:
        """Print one thing: its page, its fields one a line, its JSON document, or its ref."""
        if self._form == "json":
            self._stdout.write(_json(document, indent=2) + "\n")
        elif self._form == "refs":
            self._line(page.title)
        elif self._form == "tabs":
            for name, text in flat(document):
                self._stdout.write(f"{name}\t{text}\n")
        else:
            terminal.lines(self._stdout, page.lines(self._columns))

    def text(self, text: str, document: Mapping[str, object], ref: str) -> None:
        """Print plain words of several lines; the same in a terminal and in a pipe."""
        if self._form == "json":
            self._stdout.write(_json(document, indent=2) + "\n")
        elif self._form == "refs":
            self._line(ref)
        else:
            self._stdout.write(visible(text, lines=True).rstrip("\n") + "\n")

    def each(
        self,
        name: str,
        items: Sequence[T],
        one: Callable[[T], None],
        document: Callable[[T], Mapping[str, object]],
        **more: object,
    ) -> None:
        """Print several things one after another, or as one JSON document.

        Args:
            name: the list's in the document; `more` stands beside it.
            one: prints one of them.
        """
        if self._form == "json":
            self._document({name: [document(item) for item in items], **more})
            return
        for i, item in enumerate(items):
            if i and self._form != "refs":
                self._stdout.write("\n")
            one(item)

    def paths(self, paths: Iterable[Path]) -> None:
        """Print paths, each as soon as it is there."""
        if self._form == "json":
            self._document({"paths": [str(path) for path in paths]})
            return
        for path in paths:
            self._line(str(path))
            self._stdout.flush()

    def refs(self, checkpoints: Collection[Checkpoint]) -> None:
        """Print refs, one a line: in a pipe, in a terminal and with -q alike."""
        if self._form == "json":
            plain = [c.to_dict() for c in checkpoints]
            self._document({"checkpoints": plain, "next": None})
        else:
            for ckpt in checkpoints:
                self._line(ckpt.ref)

    def written(self, location: str, ckpt: Checkpoint) -> None:
        """Print the ref of what was written, so that `$(ckreg push …)` is one; where, on stderr."""
        if self._form == "json":
            self._stdout.write(_json(ckpt.to_dict(), indent=2) + "\n")
        else:
            self._line(ckpt.ref)
        self.registry(location)

    def imported(self, done: ImportResult, location: str) -> None:
        """Print what an import took in, and on stderr what failed, why, and the counts."""
        if self._form == "json":
            self._stdout.write(_json(done.to_dict(), indent=2) + "\n")
        elif self._form == "refs":
            for file in done.files:
                if file.checkpoint is not None:
                    self._line(file.checkpoint.ref)
        else:
            self._rows([*done.added, *done.present], IMPORTED_COLUMNS, lambda f: f.path)
        for file in done.failed:
            self.note(f"failed: {file.path}: {file.reason}")
            if file.hint:
                self.note(f"        {file.hint}")
        for remark in done.remarks:
            self.note(f"note: {remark}")
        would = " would be" if done.dry_run else ""
        self.note(
            f"{len(done.added):,}{would} added, {len(done.present):,} there already, "
            f"{len(done.failed):,} failed; {count(done.passed_over, 'other file')} passed over"
        )
        if done.added and not done.dry_run:
            self.registry(location)

    def findings(self, page: Page, found: Verification) -> None:
        """Print what verify found: a page, a line a finding, or one JSON document."""
        if self._form == "tabs":
            self._rows(found.findings, FINDING_COLUMNS, lambda f: f.where)
            self.note(f"{page.title}  {page.summary}")
        else:
            self.page(page, found.to_dict())

    def chart(self, drawn: Curves) -> None:
        """Print a chart, in colour on a terminal; in a pipe the same without."""
        colour = terminal.in_colour(self._stdout)
        letters = not _writes(self._stdout, "\u28ff│")
        lines = plotting.chart(drawn, self._columns, colour=colour, letters=letters)
        if self._form == "table":
            terminal.lines(self._stdout, lines)
        else:
            for line in lines:
                self._stdout.write("".join(text for text, _ in line).rstrip() + "\n")
        if drawn.undrawn:
            self.note(
                f"{count(drawn.undrawn, 'older run')} not drawn: choose with --run or --where"
            )
        if drawn.left_out:
            self.note(f"{count(drawn.left_out, 'checkpoint')} left out: without {drawn.axis}")

    def pruning(self, plan: PrunePlan) -> None:
        """Print what becomes of each checkpoint and why, the sum on stderr; of what is done, and
        with -q, only what goes.
        """
        if self._form == "json":
            self._stdout.write(_json(plan.to_dict(), indent=2) + "\n")
        else:
            shown = plan.removed if plan.done or self._form == "refs" else plan.verdicts
            self._rows(shown, VERDICT_COLUMNS, lambda v: v.ref)
        self.note(
            f"{len(plan.removed):,} of {count(len(plan.verdicts), 'checkpoint')} "
            f"{'removed' if plan.done else 'would go'}; "
            f"{size(plan.size_bytes)} come back when gc takes them, after its grace"
            if plan
            else f"nothing goes of {count(len(plan.verdicts), 'checkpoint')}"
        )
        if plan.spared:
            self.note(f"{plan.spared:,} spared, since something changed meanwhile")

    @property
    def aside(self) -> Output:
        """Where a person is shown what a question is about: tables, on stderr."""
        return Output(self._stderr, self._stderr, columns=self._columns)

    def comparison(self, found: Comparison) -> None:
        """Print two checkpoints' metrics side by side, and on stderr which they are."""
        if self._form == "json":
            self._stdout.write(_json(found.to_dict(), indent=2) + "\n")
            return
        self._rows(found.metrics, COMPARED_COLUMNS, lambda c: c.name)
        self.note(f"new: {found.new.ref}  base: {found.base.ref}")
        if found.condition is not None:
            says = "holds" if found.holds else "does not hold"
            self.note(f"{found.condition}: {says} ({found.meaning})")

    def path(self, path: Path | str, facts: Mapping[str, object] | None = None) -> None:
        """Print a path, whole: it is there to be pasted or piped."""
        if self._form == "json":
            self._document({"path": str(path), **(facts or {})})
        else:
            self._line(str(path))

    def upgraded(self, location: str, done: Upgrade) -> None:
        """Print the revision that a registry is at, and say what was done to get there."""
        if self._form == "json":
            self._document(
                {
                    "before": done.before,
                    "after": done.after,
                    "backup": None if done.backup is None else str(done.backup),
                }
            )
        else:
            self._line(done.after)
        if done.before == done.after:
            self.note(f"{location} is current")
        else:
            self.note(f"{location} was at {done.before}; its database as it was: {done.backup}")

    # --- stderr ---------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        self._stderr.write(visible(text, lines=True) + "\n")

    def registry(self, location: str) -> None:
        """Name the registry that was written to: a write to the wrong one is seen at once."""
        self.note(f"registry: {location}")

    def progress(self, label: str, unit: str | None = None) -> terminal.Progress:
        """Return what shows how far one piece of work is; silent where stderr is no terminal.

        Args:
            unit: what is counted, or None for bytes.
        """
        live = self._stderr.isatty() and os.environ.get("TERM") != "dumb"
        return terminal.Progress(self._stderr, label, live=live, unit=unit)

    # --- forms ----------------------------------------------------------------------------------

    def _line(self, text: str) -> None:
        self._stdout.write(visible(text) + "\n")

    def _document(self, fields: Mapping[str, object]) -> None:
        self._stdout.write(_json({"format": FORMAT, **fields}, indent=2) + "\n")

    def _rows(
        self, items: Iterable[Any], columns: Sequence[Column], ref: Callable[[Any], str]
    ) -> None:
        if self._form == "refs":
            for item in items:
                self._line(ref(item))
        elif self._form == "tabs":
            for item in items:
                self._stdout.write("\t".join(field(c.value(item)) for c in columns) + "\n")
        else:
            headings = [terminal.Heading(c.name, c.right, c.gives, c.kind) for c in columns]
            rows = ([visible(c.shown(item)) for c in columns] for item in items)
            terminal.table(self._stdout, headings, rows, self._columns)


def _writes(stream: TextIO, text: str) -> bool:
    """Return whether a stream can write a text."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _json(value: object, *, indent: int | None = None) -> str:
    # ASCII only, so that every control character is an escape
    return json.dumps(value, indent=indent, allow_nan=False)


def _model(model: Model) -> dict[str, object]:
    return {
        "name": model.name,
        "versions": model.versions,
        "checkpoints": model.checkpoints,
        "datasets": list(model.datasets),
        "metric": model.metric,
        "mode": model.mode,
        "created_at": time_text(model.created_at),
    }
