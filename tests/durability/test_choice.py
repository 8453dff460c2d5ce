"""Tables or none: what the fit chose at a site stays chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_job import FIRST, SECOND, begin, in_stage
from trials import result_bytes

from compress.conversion import resume
from compress.distill.job import Job
from compress.distill.layerwise import BETTER_WITHOUT, SiteDistiller
from compress.distill.stopped import Stopped
from compress.lookup import LookupFFN, PackedLookupFFN
from compress.models import load_pretrained


@pytest.mark.parametrize(("stage", "calls"), [("distill", 60), ("finetune", 1)])
def test_students_that_were_chosen_without_tables_stay_so(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, calls: int
) -> None:
    error, decided = SiteDistiller.held_out_error, set[str]()

    def worse_with_tables(self: SiteDistiller, student: LookupFFN) -> float:
        penalty = 0.0 if self.tap.site.name in decided or not student.geometry.tables else 2.0
        return error(self, student) + penalty

    monkeypatch.setattr(SiteDistiller, "held_out_error", worse_with_tables)
    begin(work, tmp_path / "whole")
    with pytest.raises(Stopped):
        begin(work, tmp_path / "out", stop=in_stage(tmp_path / "out", stage, calls))
    decided |= {FIRST} if stage == "distill" else {FIRST, SECOND}
    resume(tmp_path / "out")
    assert result_bytes(tmp_path / "out") == result_bytes(tmp_path / "whole")
    journal = Job.open(tmp_path / "out").journal
    assert [site["tables"] for site in journal["plan"]["sites"].values()] == [0, 0]
    assert [student.geometry.tables for student in students(tmp_path / "out")] == [0, 0]
    assert [student.geometry.tables > 0 for student in students(work / "whole")] == [True, True]
    (note,) = json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    assert note.startswith("No tables at layers.0.mlp.down_proj, layers.1.mlp.down_proj")


@pytest.mark.parametrize(("without", "tables"), [(BETTER_WITHOUT + 0.01, True), (BETTER_WITHOUT - 0.01, False)])
def test_tables_stay_where_the_closed_form_is_hardly_better_without(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: float, tables: bool
) -> None:
    monkeypatch.setattr(SiteDistiller, "held_out_error", lambda _, student: 1.0 if student.geometry.tables else without)
    begin(work, tmp_path / "out", "distill.steps=0", "finetune.steps=0")
    assert [student.geometry.tables > 0 for student in students(tmp_path / "out")] == [tables] * 2


def students(folder: Path) -> list[PackedLookupFFN]:
    return [module for module in load_pretrained(str(folder)).model.modules() if isinstance(module, PackedLookupFFN)]
