"""Sample answers beside the reference's, word by word."""

from bitplan.report.answers import compared


def marked(prompt: str, reference: str, answer: str) -> list[str]:
    return [word.text for word in compared(prompt, reference, answer).words if word.differs]


def test_the_words_that_an_answer_adds_or_changes_are_marked():
    assert marked("There", " the cat sat on the mat", " the dog sat on a mat now") == ["dog", "a", "now"]
    # What follows an inserted word is the reference's again.
    assert marked("There", " a cat sat on the mat.", " a big cat sat on the mat.") == ["big"]
    assert marked("There", " a very big cat sat", " a cat sat") == []


def test_no_more_words_are_marked_than_the_shortest_edit_needs():
    # The longest block of words in common, "x y z a b", is not part of the shortest edit.
    assert marked("", "a b c d x y z a b x y z a b", "a b x y z a b x y z a b e") == ["e"]


def test_a_word_that_the_prompt_begins_and_the_answer_ends_is_one_word():
    answer = compared("there was a", "vailable. He sat", "vailable. She sat")
    assert [word.text for word in answer.reference] == ["there", "was", "available.", "He", "sat"]
    assert [word.text for word in answer.words if word.given] == ["there", "was"]
    assert [word.text for word in answer.words if word.differs] == ["She"]
    assert marked("there was a", "vailable", " cat") == ["a", "cat"]


def test_an_answer_says_how_many_words_are_the_same_before_the_first_that_differs():
    assert compared("Once", " a cat sat", " a cat ran and sat").same == 2
    assert compared("Once", " a cat", " the cat").same == 0
    assert compared("Once", " a cat", " a cat").same is None


def test_texts_without_spaces_are_compared_by_character():
    assert marked("从前", "有一只猫。", "有一只狗。") == ["狗"]
