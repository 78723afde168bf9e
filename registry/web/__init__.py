"""The dashboard: a registry in a browser, on this machine, for reading only.

Law: GET and HEAD alone, and nothing that a page calls writes; what a database says is text, never
markup; no byte comes from elsewhere. Every page works without JavaScript, and its URL says all that
it shows. Where another dashboard would have ids in a path, a query names them: a model's name has
slashes.

    /                                           models, each with its best
    /checkpoints?model&dataset&run&tag&where&sort&after     a table, and of one model a chart
    /chart.json?model&dataset&run&metric&x      the chart's points
    /checkpoint?ref&dataset                     one; ref is any ref, links take ids
    /compare?a&b                                two; refs or ids
    /storage                                    bytes by model; what gc and prune would free
    /go?q                                       to the model or checkpoint that a text names
    /static/…                                   styles, scripts, and vendor/, as they were published

`dataset` and the like: absent or empty means any, one blank means those that have none.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from ..errors import CkregError

_NEEDED: Final = ("starlette", "jinja2", "uvicorn")


def check_installed() -> None:
    """See that the extra is there, before anything of it is imported.

    Raises:
        CkregError: it isn't.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise CkregError(
            f"the dashboard needs {' and '.join(missing)}, not installed here",
            hint="pip install 'ckreg[ui]'",
        )
