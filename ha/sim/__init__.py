"""A cluster of nodes in one thread, on a virtual clock, from one seed; driven by the code that runs in production.

`decide`, `lrm.step` and the keeper's `step` are the real ones. Around them stand models: of the store (`store`), of a host
with its keeper, agent, guests and watchdog (`host`), and of the daemon between them (`daemon`). `world` breaks things and
checks after each change that no guest runs twice. The models are pessimistic where the real thing is vague: a call that
timed out may still take effect, a deposed leader believes in itself for a while, a killed process runs until it is gone.

    python -m ha.sim --seeds 200
    python -m ha.sim --seed 17      # with its story
"""
