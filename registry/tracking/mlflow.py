"""An MLflow store, read with MLflow's own client: a database, a server, or a folder of files.

Law: the only module that imports mlflow. Nothing is written to a database or a server: a SQLite
one is copied first, since MLflow makes tables in what it opens (in a folder it may make `models`).
Passwords of a URL are in no message; what MLflow raises leaves as a CkregError.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from ..errors import CkregError, ContainerError, NotFoundError, RemoteError
from .told import Point, Registered, TrackedRun, Tree

PREFIX: Final = "mlflow:"

_QUIET: Final = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # 3.10 and later refuse ./mlruns, even to be read
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # ours is shown
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # of 7 the last waits for minutes
}
"""What MLflow reads from the environment, where the user hasn't said otherwise."""

_OWN: Final = "mlflow."
_PAGE: Final = 200
_PASSWORD: Final = re.compile(r"(?<=://)([^@/:]*):([^@/]*)@")


def shown(uri: str) -> str:
    """Return a URI without its password.

    Example:
        >>> shown("https://ann:secret@mlflow.lab/x")
        'https://ann:***@mlflow.lab/x'
    """
    return _PASSWORD.sub(r"\1:***@", uri)


class MlflowStore:
    """One tracking store, and the model registry that belongs to it.

    Args:
        uri: as MLflow takes it: `sqlite:///mlflow.db`, `http://127.0.0.1:5000`, `./mlruns`, …
        scratch: a folder for what must be copied.

    Raises:
        CkregError: mlflow isn't installed.
        NotFoundError: there is no such database or folder.
        ContainerError: it isn't MLflow's.
        RemoteError: it doesn't answer, or refuses.
    """

    def __init__(self, uri: str, scratch: Path) -> None:
        self.shown = shown(uri)
        self._secrets = [found[2] for found in _PASSWORD.finditer(uri) if found[2]]
        self._uri = _readable(uri, scratch)
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow
        except ImportError as error:
            raise CkregError(
                f"{self.shown!r} is read with MLflow's client, which can't be imported: {error}",
                hint="pip install 'ckreg[mlflow]', or the mlflow that you use",
            ) from error
        with self._asking("open"):
            self._client = mlflow.MlflowClient(self._uri, registry_uri=self._uri)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Translate what MLflow, and the libraries below it, raise."""
        try:
            yield
        except CkregError:
            raise
        except Exception as error:  # MLflow's, requests', SQLAlchemy's, boto's: no common base
            text = (str(error) or type(error).__name__).strip().splitlines()[0]
            for secret in self._secrets:
                text = text.replace(secret, "***")
            hint = (
                "see that it is up, and that MLFLOW_TRACKING_USERNAME, _PASSWORD or _TOKEN is set"
            )
            if "schema" in text:
                hint = "mlflow db upgrade brings it up; copy a database that you still train with"
            elif "://" not in self._uri:
                hint = "see that it is a folder of MLflow's, as ./mlruns is"
            raise RemoteError(f"can't {what} {self.shown!r}: {text}", hint=hint) from error

    def _paged(self, what: str, ask: Callable[[str | None], Any]) -> Iterator[Any]:
        token: str | None = None
        while True:
            with self._asking(what):
                page = ask(token)
            yield from page
            token = page.token
            if not token:
                return

    # --- what there is ------------------------------------------------------------------------

    def experiments(self) -> dict[str, str]:
        """Return the names of the experiments that weren't deleted, by id."""
        client = self._client
        found = self._paged(
            "list the experiments of",
            lambda token: client.search_experiments(max_results=_PAGE, page_token=token),
        )
        return {e.experiment_id: e.name for e in found}

    def trees(self, experiments: Mapping[str, str]) -> Iterator[Tree]:
        """Yield the trees of artifacts of some experiments' runs and models, oldest run first, and
        then those of registered versions that lie in none of them.
        """
        versions = self._versions()
        runs: dict[str, TrackedRun] = {}
        made: list[tuple[Any, Tree]] = []
        for id, name in experiments.items():
            outputs: dict[str, int] = {}
            own: dict[str, str] = {}
            for run in self._runs(id):
                runs[run.info.run_id] = self._run(run, name)
                own[run.info.run_id] = run.info.artifact_uri
                outputs |= _outputs(run)
            for run_id, uri in own.items():
                begun = (runs[run_id].started or datetime.min.replace(tzinfo=UTC), 0)
                made.append((begun, self._tree(runs[run_id].title, uri, runs[run_id])))
            for model in self._logged(id):
                whose = runs.get(model.source_run_id or "")
                begun = (
                    whose.started if whose and whose.started else _time(model.creation_timestamp),
                    model.creation_timestamp,
                )
                made.append((begun, self._model(model, name, whose, outputs)))
        for _, tree in sorted(made, key=lambda pair: pair[0]):
            yield _with_versions(tree, versions)
        for version in versions:
            if not version.taken and (version.run_id in runs or not version.run_id):
                yield self._alone(version, runs.get(version.run_id or ""))

    def fetch(self, tree: Tree, name: str, scratch: Path) -> Path:
        """Return a file of a tree, or a folder in it ("." is all), where it can be read.

        Raises:
            RemoteError: it couldn't be brought here.
        """
        local = local_path(tree.uri)
        if local is not None:
            return local if name == "." else local / name
        from mlflow.artifacts import download_artifacts

        inner = "" if name == "." else f"/{name}"
        with self._asking(f"download {name!r} from"):
            return Path(
                download_artifacts(
                    artifact_uri=tree.uri.rstrip("/") + inner,
                    dst_path=str(scratch),
                    tracking_uri=self._uri,
                )
            )

    # --- each kind ----------------------------------------------------------------------------

    def _runs(self, experiment: str) -> Iterator[Any]:
        client = self._client
        return self._paged(
            "list the runs of",
            lambda token: client.search_runs(
                [experiment],
                max_results=_PAGE,
                page_token=token,
                order_by=["attributes.start_time ASC"],
            ),
        )

    def _run(self, run: Any, experiment: str) -> TrackedRun:
        info, data = run.info, run.data
        history: dict[str, tuple[Point, ...]] = {}
        for key in data.metrics:
            with self._asking("read the metrics of"):
                found = self._client.get_metric_history(info.run_id, key)
            history[key] = tuple(sorted(Point(m.step, m.timestamp, m.value) for m in found))
        named = {d.dataset.name for d in getattr(run.inputs, "dataset_inputs", None) or ()}
        named.discard("dataset")  # what MLflow calls one that nobody named
        return TrackedRun(
            id=info.run_id,
            name=info.run_name or None,
            experiment=experiment,
            metrics=history,
            params=dict(data.params),
            tags=_tags(data.tags),
            dataset=named.pop() if len(named) == 1 else None,
            author=data.tags.get("mlflow.user"),
            command=data.tags.get("mlflow.source.name"),
            git=data.tags.get("mlflow.source.git.commit"),
            started=None if info.start_time is None else _time(info.start_time),
        )

    def _logged(self, experiment: str) -> list[Any]:
        """Return the models that MLflow 3 keeps beside the runs; an older server knows none."""
        client = self._client
        if not hasattr(client, "search_logged_models"):
            return []
        try:
            return list(
                self._paged(
                    "list the models of",
                    lambda token: client.search_logged_models(
                        experiment_ids=[experiment], max_results=50, page_token=token
                    ),
                )
            )
        except RemoteError as error:
            if "not found" in error.message.lower() or "not implemented" in error.message.lower():
                return []
            raise

    def _model(
        self, model: Any, experiment: str, run: TrackedRun | None, outputs: Mapping[str, int]
    ) -> Tree:
        """Return a logged model's tree.

        Of equal names MLflow links the metrics of the step at which the model was logged, and that
        is 0 where nobody said one: then the link says nothing.
        """
        step = outputs.get(model.model_id)
        said = any(outputs.values())
        points: dict[str, Point] = {}
        for m in model.metrics or ():
            point = Point(m.step, m.timestamp, m.value)
            if point.step > 0 or said or run is None or not _goes_on(run, m.key):
                points[m.key] = max(points.get(m.key, point), point)
        title = f"{experiment if run is None else run.title}/{model.name}"
        tree = self._tree(title, model.artifact_location, run)
        if str(getattr(model, "status", "READY")) == "READY":  # else it was never logged whole
            tree = _whole(tree)
        return _changed(tree, metrics=points, step=step if said else None, one_model=True)

    def _tree(self, title: str, uri: str, run: TrackedRun | None) -> Tree:
        files: dict[str, int] = {}
        missing = None
        try:
            self._list(uri, "", files)
        except CkregError as error:
            missing = error.message
        return Tree(title=title, uri=uri, files=files, run=run, missing=missing)

    def _list(self, uri: str, place: str, files: dict[str, int]) -> None:
        local = local_path(uri)
        if local is not None:
            for folder, _, names in os.walk(local):
                for name in names:
                    path = Path(folder, name)
                    if path.is_file() and not path.is_symlink():
                        files[path.relative_to(local).as_posix()] = path.stat().st_size
            return
        from mlflow.artifacts import list_artifacts

        pending = [place]
        while pending:
            inner = pending.pop()
            where = uri.rstrip("/") + (f"/{inner}" if inner else "")
            with self._asking("list the artifacts of"):
                found = list_artifacts(artifact_uri=where, tracking_uri=self._uri)
            for entry in found:
                # with an URI, paths begin at the last folder of it in some stores
                name = f"{inner}/{entry.path.rsplit('/', 1)[-1]}".lstrip("/")
                if entry.is_dir:
                    pending.append(name)
                else:
                    files[name] = entry.file_size or 0

    def _versions(self) -> list[_Version]:
        client = self._client
        models = self._paged(
            "list the registered models of",
            lambda token: client.search_registered_models(max_results=100, page_token=token),
        )
        found: list[_Version] = []
        for model in models:
            aliases: dict[str, list[str]] = {}
            for alias, number in (getattr(model, "aliases", None) or {}).items():
                aliases.setdefault(str(number), []).append(alias)
            listed = self._paged(
                "list the model versions of",
                lambda token, name=model.name: client.search_model_versions(  # type: ignore[misc]
                    "name = '{}'".format(name.replace("'", "\\'")),
                    max_results=_PAGE,
                    page_token=token,
                ),
            )
            for v in sorted(listed, key=lambda v: int(v.version)):
                stage = getattr(v, "current_stage", None)
                what = Registered(
                    model=v.name,
                    version=str(v.version),
                    tags=_tags(v.tags),
                    aliases=tuple(sorted(aliases.get(str(v.version), ()))),
                    stage=None if stage in (None, "None", "") else stage,
                    note=v.description or None,
                )
                found.append(_Version(what, v.source or "", v.run_id, getattr(v, "model_id", None)))
        return found

    def _alone(self, version: _Version, run: TrackedRun | None) -> Tree:
        what = version.what
        uri = version.source
        if not local_path(uri):
            with self._asking("find the files of a model version in"):
                uri = self._client.get_model_version_download_uri(what.model, what.version)
        tree = _whole(self._tree(f"{what.model}/{what.version}", uri, run))
        return _changed(tree, versions=(("", what),), one_model=True)


class _Version:
    """A registered version, where its files are said to lie, and whether they were found there."""

    def __init__(self, what: Registered, source: str, run_id: str | None, model_id: str | None):
        self.what, self.source, self.run_id = what, source, run_id
        logged = re.fullmatch(r"models:/(m-[0-9a-f]+)", source)
        self.model_id = model_id or (logged[1] if logged else None)
        self.taken = False

    def place_in(self, tree: Tree) -> str | None:
        """Return the folder of a tree that it is, or None where it lies elsewhere."""
        if self.model_id is not None:
            return "" if f"/{self.model_id}/" in f"{tree.uri.rstrip('/')}/" else None
        if tree.run is not None and self.source.startswith(f"runs:/{tree.run.id}/"):
            return self.source.removeprefix(f"runs:/{tree.run.id}/").strip("/")
        mine, its = _plain(self.source), _plain(tree.uri)
        if mine == its:
            return ""
        return mine.removeprefix(f"{its}/") if mine.startswith(f"{its}/") else None


def _with_versions(tree: Tree, versions: list[_Version]) -> Tree:
    found = []
    for version in versions:
        place = version.place_in(tree)
        if place is not None:
            version.taken = True
            found.append((place, version.what))
    return _changed(tree, versions=tuple(found)) if found else tree


def _whole(tree: Tree) -> Tree:
    """Return a model's tree, which is missing where nothing is at its place: a model has files."""
    if tree.files or tree.missing is not None:
        return tree
    return _changed(tree, missing=f"nothing is at {tree.uri!r}, where the store says that it is")


def _changed(tree: Tree, **fields: Any) -> Tree:
    from dataclasses import replace

    return replace(tree, **fields)


def _outputs(run: Any) -> dict[str, int]:
    return {m.model_id: m.step for m in getattr(run.outputs, "model_outputs", None) or ()}


def _goes_on(run: TrackedRun, key: str) -> bool:
    return any(point.step > 0 for point in run.metrics.get(key, ()))


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: str(value) for name, value in tags.items() if not name.startswith(_OWN)}


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


# --- where it is ----------------------------------------------------------------------------------


def local_path(uri: str) -> Path | None:
    """Return the folder that a URI means on this machine, or None where it is elsewhere.

    Example:
        >>> local_path("file:///a%20b"), local_path("/a"), local_path("s3://b/a")
        (PosixPath('/a b'), PosixPath('/a'), None)
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme else None


def _plain(uri: str) -> str:
    local = local_path(uri)
    return uri.rstrip("/") if local is None else local.as_posix()


def _readable(uri: str, scratch: Path) -> str:
    """Return the URI to open: a folder's as it is, a copy of a SQLite database.

    Raises:
        NotFoundError: it isn't there.
        ContainerError: it is no database of MLflow's.
    """
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]*)(?:\?.*)?", uri)
    if match is None:
        folder = local_path(uri)
        if folder is not None and not folder.is_dir():
            what = "a file: name it as mlflow:sqlite:///FILE" if folder.exists() else "not there"
            raise NotFoundError(f"there is no MLflow store at {str(folder)!r}: it is {what}")
        return uri
    path = Path(match[1])
    if not path.is_file():
        raise NotFoundError(f"there is no MLflow database at {str(path)!r}")
    copy = scratch / "mlflow.db"
    try:
        with (
            closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            tables = {row[0] for row in source.execute("SELECT name FROM sqlite_master")}
            if not {"experiments", "runs", "metrics"} <= tables:
                raise ContainerError(
                    f"{str(path)!r} is a SQLite database, and not one of MLflow's",
                    hint="name the one that --backend-store-uri or mlflow.set_tracking_uri names",
                )
            source.backup(target)
    except sqlite3.Error as error:
        raise ContainerError(
            f"{str(path)!r} can't be read as a SQLite database: {error}"
        ) from error
    return f"sqlite:///{copy}"


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path.absolute()))
