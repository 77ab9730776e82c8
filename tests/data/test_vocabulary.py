"""The shipped words, and names that overlap with what is forgotten."""

from __future__ import annotations

import pytest

from hf_kd.data.vocabulary import LANGUAGES, checked_names, checked_templates, objects, shares_words, templates
from hf_kd.errors import InvalidTypeError, InvalidValueError


def test_the_shipped_lists_hold_each_entry_once():
    for listed in (templates(), objects()):
        assert len(set(listed)) == len(listed)
        assert all(entry == entry.strip() for entry in listed)
    assert len(templates()) == 80
    assert all(template.count("{}") == 1 for template in templates())
    assert {"cat", "tabby cat", "animal"} <= set(objects())


def test_other_languages_have_wordings_of_their_own():
    for language in LANGUAGES:
        found = templates(language)
        assert len(set(found)) == 8
        assert found[-1] == "{}"
        assert checked_templates(found) == found
    assert templates("en") == templates()
    both = templates("en", "de")
    assert len(both) == 87, "the name alone is one wording"
    with pytest.raises(InvalidValueError, match="no templates in 'xx'"):
        templates("xx")


@pytest.mark.parametrize(
    ("name", "forgotten", "shared"),
    [
        ("tabby cat", "cat", True),
        ("cat", "tabby cat", True),
        ("Cats", "cat", True),
        ("caterpillar", "cat", False),
        ("glass", "glas", False),
        ("bus", "bu", False),
        ("dog", "cat", False),
    ],
)
def test_names_overlap_by_whole_words_in_either_number(name, forgotten, shared):
    assert shares_words(name, [forgotten]) == shared


def test_names_and_templates_are_checked():
    assert checked_names([" tabby  cat", "tabby cat"], "texts") == ("tabby cat",)
    assert checked_templates(None) == templates()
    with pytest.raises(InvalidTypeError, match="list of names"):
        checked_names("cat", "texts")
    with pytest.raises(InvalidValueError, match="empty"):
        checked_names(["cat", " "], "texts")
    with pytest.raises(InvalidValueError, match="{}"):
        checked_templates(["a photo"])
