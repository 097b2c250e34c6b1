"""Faults put into the real code on purpose: the simulation finds each of them, so its silence means something."""

import pytest
from sim_mutations import MUTATIONS, Mutation
from sim_weather import simulate


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_deliberate_fault_is_found(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    limit = MUTATIONS[mutation]
    assert any(simulate(seed).violation for seed in range(limit)), f"{limit} seeds found nothing"
