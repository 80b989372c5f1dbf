"""eval/pope/labels.py: corrected labels find their questions."""

import json
from pathlib import Path

import pytest

from damro.eval.pope.labels import correct, load_labels
from damro.eval.pope.questions import load_questions


@pytest.mark.parametrize("mended", [True, False])
def test_the_misprint_of_the_question_files_is_no_difference(tmp_path: Path, mended: bool) -> None:
    """POPE's coco_adversarial asks for things "in the imange"; RePOPE's file of the same questions does not."""
    asked = load_questions("coco/adversarial")
    assert any("imange" in one.text for one in asked)
    path = tmp_path / "labels.json"
    texts = [one.text.replace("imange", "image") if mended else one.text for one in asked]
    path.write_text(
        "".join(
            json.dumps({"image": one.image, "text": text, "label": "no"}) + "\n"
            for one, text in zip(asked, texts, strict=True)
        )
    )
    found = correct(asked, load_labels(path, complete=True))
    assert found.excluded == 0 and found.changed == sum(one.label == "yes" for one in asked)
    assert [one.text for one in found.questions] == [one.text for one in asked]
