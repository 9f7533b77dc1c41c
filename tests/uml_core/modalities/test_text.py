from __future__ import annotations

import pytest
import torch

from uml_core.modalities import BadSample
from uml_core.modalities.text import Options, Text, tokenise


def ids(text: str | bytes, **options: object) -> list[int]:
    data = text.encode() if isinstance(text, str) else text
    return Text(Options(**options)).decode(data, "txt").tolist()


def test_words_are_normalised_and_punctuation_is_left_out():
    assert tokenise("A RED, striped\tCircle!", "word") == ["a", "red", "striped", "circle"]
    assert tokenise("Straße ＡＢＣ ①", "word") == ["strasse", "abc", "1"]
    assert tokenise("don't", "word") == tokenise("don’t", "word") == ["don", "t"]


def test_vowel_signs_do_not_split_words():
    assert tokenise("नीला वृत्त", "word") == ["नीला", "वृत्त"]
    assert len(tokenise("สีแดง", "word")) == 1


def test_characters_and_ngrams_know_the_word_boundaries():
    assert tokenise("Ab c", "char") == ["a", "b", " ", "c"]
    assert tokenise("Ab", "char_ngram") == ["<", "<a", "<ab", "a", "ab", "ab>", "b", "b>", ">"]


def test_equal_tokens_share_a_bucket_and_padding_has_none():
    first, second, third = ids("red blue red")
    assert first == third != second
    many = ids(" ".join(f"w{i}" for i in range(500)), max_tokens=500, vocab=7)
    assert set(many) == set(range(1, 7))


def test_ids_are_the_same_in_every_process_and_release():
    # Written down once: checkpoints of a text stem are worthless when these move.
    assert ids("a red circle") == [2728, 1696, 453]
    assert ids("नीला") == [2931]


def test_long_texts_are_cut_at_max_tokens_and_refused_beyond_max_chars():
    assert len(ids("word " * 50, max_tokens=8)) == 8
    assert ids("ab ab", max_chars=5)
    with pytest.raises(BadSample, match="6 characters"):
        ids("ab abc", max_chars=5)
    with pytest.raises(BadSample, match="max_chars"):
        ids("語" * 20, max_chars=5)


@pytest.mark.parametrize("data", [b"", b" \n", b"!?", b"\xff\xfe\x00", "🙂".encode()])
def test_texts_without_words_and_other_encodings_are_bad_samples(data):
    with pytest.raises(BadSample):
        ids(data)


def test_a_byte_order_mark_is_no_token():
    assert ids(b"\xef\xbb\xbfred") == ids("red")


def test_collate_pads_with_zeros_and_masks():
    text = Text(Options())
    x, mask = text.collate([text.decode(b"red circle", "txt"), text.decode(b"red", "txt")])
    assert x.dtype == torch.int64 and x[1, 1] == 0 and x[0, 0] == x[1, 0]
    assert mask is not None and mask.tolist() == [[True, True], [True, False]]
    assert text.collate([x[0], x[0]])[1] is None


def test_the_bag_is_the_mean_of_its_words():
    text = Text(Options())
    stem = text.stem(16, supervised=True)

    def token(*words: str) -> torch.Tensor:
        return stem(*text.collate([text.decode(" ".join(words).encode(), "txt")]))[0]

    torch.testing.assert_close(token("red", "blue"), token("blue", "red"))
    torch.testing.assert_close(token("red"), token("red", "red"))
    assert not torch.allclose(token("red"), token("blue"))


def test_problems_are_sentences_that_say_what_to_do():
    def check(setting: str, **options: object) -> list[str]:
        return Text.check(Options(**options), setting=setting, width=64, heads=4)

    assert "stem: tokens" in check("self_supervised", stem="bag")[0]
    assert check("self_supervised", stem="tokens") == []
    assert len(check("supervised", vocab=1, max_tokens=0, max_chars=0)) == 3
