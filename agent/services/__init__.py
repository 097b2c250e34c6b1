"""The agent's gRPC services: thin fronts that read a request, call a room of the agent, and put the answer into a message.

Who calls has been decided before a method here runs (`agent.calls`), and errors are mapped after it. Each module has
`register(server, node)`.
"""
