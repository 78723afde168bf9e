"""The commands of `ckreg`, by idea: the place, files in and out, looking, marking, the shell.

Law: a command parses, makes one call of the API and one of the output. Registry is imported
inside, so that help and version cost no SQLAlchemy.
"""
