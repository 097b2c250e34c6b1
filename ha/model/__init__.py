"""Small models of what single ownership rests on, explored to the last state: every order of events within their
bounds.

The simulation (`ha.sim`) runs the production code through a few of endlessly many histories; here a sketch of it goes
through all of few. A model is a frozen state and the steps from it; `explore` finds the shortest way to a state that
breaks its rule, or says that there is none. Each model has mutations, faults built in on purpose, which it must find.
No clocks, no chance, no files.

    python -m ha.model            # every model, and every mutation with its shortest counterexample
"""
