"""Keys: canonical and raw, wrapper tokens and leading attributes, and what a file's keys can mean.

Law: a wrapper holds one module and nothing else, so a token may go only where every key below that
module has it; nothing is ever stripped from some keys and left on others. renaming.py takes tokens
out and puts them in, readings.py adds the attribute that held the net, trees.py and fitting.py find
the readings that fit a target. Knows keys and shapes; nothing of files, records or devices.
"""

from .fitting import Way, candidates, is_whole, prefixed_ways, ways
from .readings import Reading, stated_style
from .renaming import (
    PLAIN,
    guess_style,
    idle_positions,
    spelled,
    to_canonical,
    to_raw,
    wrapper_state,
)
from .trees import AVERAGED, Shapes

__all__ = [
    "to_canonical", "to_raw", "spelled", "wrapper_state", "idle_positions", "guess_style", "PLAIN",
    "AVERAGED",
    "Reading", "stated_style", "Shapes",
    "Way", "ways", "prefixed_ways", "candidates", "is_whole",
]  # fmt: skip
