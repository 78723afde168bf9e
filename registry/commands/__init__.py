"""The commands, one short function each, in modules by what they do.

Law: a command's module is imported when it is called or asked for its help, so that `ckreg -h` pays
for none of them.
"""

from __future__ import annotations

from typing import Final

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "init": ("place.init", "Make a registry: ./.ckreg, or at a LOCATION."),
    "push": ("files.push", "Record a checkpoint; what isn't said is read from it."),
    "import": ("files.import_", "Record every checkpoint below a folder, or of an MLflow store."),
    "pull": ("files.pull", "Write a checkpoint out, as stored or adapted."),
    "export": ("files.export", "Write the weights into a folder, whole or in shards."),
    "list": ("looking.list_", "List checkpoints, newest first."),
    "models": ("looking.models", "List the models: versions, datasets, and what best means."),
    "best": ("looking.best", "Show a model's best checkpoint."),
    "show": ("looking.show", "Show everything that is recorded of a checkpoint."),
    "plan": ("looking.plan", "Show how a load would go, why, and the same by hand in Python."),
    "diff": ("looking.diff", "Show how B differs from A: facts, keys, and numbers by module."),
    "compare": ("looking.compare", "Compare the metrics of NEW with those of BASE."),
    "record": ("marking.record", "Add metrics to a checkpoint; a recorded one never changes."),
    "monitor": ("marking.monitor", "Set what best means for a model; acc and max until then."),
    "tag": ("marking.tag", "Put tags on a checkpoint, or take them off."),
    "alias": ("marking.alias", "Point a name at a checkpoint, which MODEL@NAME then means."),
    "rm": ("marking.rm", "Remove checkpoints from every answer, until restored."),
    "restore": ("marking.restore", "Bring removed checkpoints back, under their old versions."),
    "prune": ("keeping.prune", "Remove the checkpoints that no keep option names."),
    "verify": ("keeping.verify", "Read every byte, row and record, and say what is wrong."),
    "gc": ("keeping.gc", "Free the bytes that nothing needs any more."),
    "copy": ("place.copy", "Copy a registry to another place; a second run goes on."),
    "migrate": ("place.migrate", "Bring a registry that an older ckreg made up to this one."),
    "info": ("place.info", "Show which registry is in use, and what it holds."),
    "ui": ("dashboard.ui", "Show the registry in a browser: a dashboard that only reads."),
    "demo": ("shell.demo", "Train, save, list, plan and load for real, in two minutes."),
    "completion": (
        "shell.completion",
        "Print the line that makes a shell complete names and refs.",
    ),
}
"""Each command's function and its sentence, in the order in which people meet them."""
