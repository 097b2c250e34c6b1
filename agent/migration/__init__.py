"""Moving a running guest to another node: the steps, and the table that says which step is safe when.

`plan` is pure and decides; `live`, `tunnel`, `relays` and `ports` perform single steps on one node. The order of the steps
over two nodes, and the store, belong to who orchestrates (agent/operations, agent/services).
"""
