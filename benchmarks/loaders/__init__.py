"""The arms of ``benchmarks/data_loading.py``: the same samples through each loader."""
