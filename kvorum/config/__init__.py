"""Proxmox VE's configuration formats: parsed to values and rendered back without loss.

Three formats are all there is: a guest's file, property strings inside of values, and files made of sections. What the keys
mean stays with the rooms that act on them. Pure: no file is opened here.
"""

from kvorum.config.guest import GuestConfig
from kvorum.config.properties import parse_properties, render_properties
from kvorum.config.sections import Section, SectionConfig

__all__ = ["GuestConfig", "Section", "SectionConfig", "parse_properties", "render_properties"]
