"""Switching a silent node off by its power, beside waiting for its lease: whichever is proven first counts.

`config` reads Proxmox VE's `ha/fence.cfg`, `plan` says whom to switch off and when (both pure), `agents` runs the
fence agents of Debian's `fence-agents`, `fencer` does it for the manager. What a confirmation means for guests is
decided in the store, by incarnation; nothing here releases anything.
"""
