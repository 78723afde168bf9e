"""Callbacks for training frameworks: what the framework writes becomes a checkpoint, and back.

Law: each module is thin, imports its framework at the top, and is imported only by who uses that;
nothing else of ckreg knows it. The framework writes and reads its own checkpoint, so that it
resumes as exactly as it can; ckreg adds the record. A failed save raises: training stops, as it
does where the framework's own save fails.
"""
