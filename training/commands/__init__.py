"""The commands of ``python -m training``: each module has ``HELP``, ``configure(parser)`` and ``run(args)``."""
