"""The subcommands of ``python -m data``: each module has ``HELP``, ``configure(parser)`` and ``run(args)``."""
