"""What tests lean on holds also where two processes of tests run at the same time."""

from __future__ import annotations

from tests.helpers.processes import APART, EPHEMERAL, free_port


def test_ports_are_none_that_the_system_gives_away_nor_those_of_another_process_of_tests(monkeypatch):
    found = []
    for worker in range(3):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
        found.append({free_port() for _ in range(50)})
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    assert max(set.union(*found, {free_port()})) < EPHEMERAL
    assert [{port % APART for port in ports} for ports in found] == [{0}, {1}, {2}]
    assert min(map(len, found)) > 40, "drawn, as another run on this machine has processes of the same names"
