"""The command `kvorum`: nouns, verbs, tables for people and JSON for programs.

Each noun is a module, loaded when it is used. A command parses, calls the client, and prints; it decides nothing. Rooms with
commands of their own (`lab`) register them under the entry point `kvorum.commands`, so that nothing here imports them.
"""
