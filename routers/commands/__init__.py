"""Commands of ``python -m routers``."""
