"""Volumes: guests' disks, containers' file systems, templates and images, on the storages of storage.cfg.

This room makes, finds, measures and removes volumes. It does not know which guest may use what, keeps no list of its own (the
storage is the list), and never opens a volume's content beyond its header.
"""

from agent.storage.driver import Status, VolumeInfo
from agent.storage.naming import Content, ImageFormat
from agent.storage.storages import Storages

__all__ = ["Content", "ImageFormat", "Status", "Storages", "VolumeInfo"]
