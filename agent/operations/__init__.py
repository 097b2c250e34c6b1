"""What is done to guests: create, start, stop, update, delete, migrate. Each is a pure plan and a thin performance.

The services ask, tasks report; drivers, storage and store do the single steps. No gRPC message gets in here.
"""
