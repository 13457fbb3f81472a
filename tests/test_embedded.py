"""A model that comes with dit-usp goes by its name, everywhere."""

from dit_usp.embedded import embedded, located, suited
from dit_usp.pipelines import auto_pipeline


def test_names_stand_for_folders():
    assert (embedded()["emoji-pixart-256"] / "model_index.json").exists()
    assert located("emoji-pixart-256") == str(embedded()["emoji-pixart-256"])
    assert located("someone/else") == "someone/else"


def test_what_suits_a_model_is_known_by_its_name_and_its_folder(tmp_path):
    assert suited("emoji-video") == suited(embedded()["emoji-video"] / ".") != {}
    assert suited("someone/else") == suited(tmp_path / "emoji-video") == {}
    assert all(map(suited, embedded()))


def load_by_name():
    return [type(auto_pipeline(name)).__name__ for name in ("emoji-pixart-256", "emoji-video")]


def test_pipelines_load_by_name(ranks):
    assert ranks(2, load_by_name) == [["USPPixArtAlphaPipeline", "USPWanPipeline"]] * 2
