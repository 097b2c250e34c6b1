"""Guests of this node: one driver for each hypervisor, and the pure cores that turn configs into their words.

Whether a guest may run here, and what belongs to whom, is decided by the operations and services above.
"""
