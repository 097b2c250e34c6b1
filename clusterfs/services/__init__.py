"""The gRPC faces of the store: requests in, commands and views out, refusals as statuses. Nothing decides here."""
