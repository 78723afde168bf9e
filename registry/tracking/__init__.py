"""What a tracking server keeps of trainings, and how it becomes checkpoints: MLflow's so far.

told.py       the nouns: runs, trees of artifacts, registered versions (pure)
mlflow.py     reads them with MLflow's own client, the only module that imports it
facts.py      which of it is said of one checkpoint (pure)
taking.py     the import itself
"""

from __future__ import annotations
