import pytest

from metergate.core.keys import KEY_SECRET_BYTES, format_key, hash_key, is_key


def test_a_key_is_recognised_by_its_prefix_and_length() -> None:
    key = format_key(bytes(range(32)))
    assert key == "mg_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert is_key(key)


@pytest.mark.parametrize("text", ["", "mg_", "mg_" + "A" * 42, "mg_" + "A" * 44, "sk_" + "A" * 43, "mg_" + "é" * 43])
def test_what_is_no_key_is_recognised_as_none(text: str) -> None:
    assert not is_key(text)


def test_a_key_is_never_made_of_too_little_randomness() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        format_key(b"x" * (KEY_SECRET_BYTES - 1))


def test_the_hash_is_that_of_the_whole_key() -> None:
    key = format_key(b"\0" * 32)
    assert len(hash_key(key)) == 32
    assert hash_key(key) != hash_key(key.removeprefix("mg_"))
