"""What a downloader finds, as a table: rows of weights are explained, and attacks are called as their rows are."""

from __future__ import annotations

import pytest

from hf_kd.audit.sections.weight_access import called, weight_access_section
from hf_kd.audit.whitebox.class_row import ROW
from hf_kd.audit.whitebox.findings import NetworkFindings
from hf_kd.metrics.attack_data import AttackResult
from hf_kd.metrics.weight_signature import PartSignature


def test_what_rows_of_weights_say_is_explained_where_there_are_some():
    moved = {"erased": [PartSignature("layer.0", 0.0, None, 4.0), PartSignature("layer.1", 1.1, 3.2, 4.0)]}
    section = weight_access_section({"erased": NetworkFindings()}, 2, signatures=moved)
    quantities = {score.name for score in section.scores if score.group.startswith("weights of ")}
    note = next(note for note in section.notes if note.startswith("weights of "))
    assert quantities == {"moved", "effective_rank"}
    assert all(name.replace("_", " ") in note for name in quantities)
    alone = weight_access_section({"erased": NetworkFindings()}, 2)
    assert not any(note.startswith("weights of ") for note in alone.notes)


@pytest.mark.parametrize("row", ["own", "made"])
def test_the_attack_on_the_class_s_row_is_called_as_its_row_of_the_table(row):
    found = NetworkFindings(class_row=AttackResult(ROW, 60.0, 90.0, 1.0, 80.0, {"row": row, "auroc_of_logit": 80.0}))
    section = weight_access_section({"erased": found}, 2)
    group = next(group for group in section.rows() if group != "strongest attack")
    assert group.startswith(ROW)
    assert called(found.strongest_attack).startswith(ROW)
    assert ("made anew" in called(found.strongest_attack)) == (row == "made")
