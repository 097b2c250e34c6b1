"""Who may call this node, and how that is proved: certificates, join tokens, callers and the policy table.

What is decided, is decided from values (a certificate, a method name, a moment); only `trust` follows the store.
Sockets belong to `agent.server` and `agent.peers`, what a call does to `agent.services`.
"""
