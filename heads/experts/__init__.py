"""Frozen experts: what their directories hold, the pool that loads and evicts them, the head that asks one."""
