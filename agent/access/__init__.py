"""Who may call this node, and how that is proved: certificates, join tokens, callers and the policy table.

Everything here decides from values (a certificate, a method name, a moment); sockets belong to `agent.server` and
`agent.peers`, and what a call does belongs to `agent.services`.
"""
