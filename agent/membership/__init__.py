"""How a cluster is formed, grows and shrinks: founding it, letting nodes in, joining, leaving, and who is in it now.

Each operation undoes itself when a later step fails. Certificates and tokens as values are in `agent.access`; the votes are
clusterfs's. `agent.services.cluster` is the thin front.
"""
