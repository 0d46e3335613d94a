"""Text that grows by tokens is the text of all tokens, cut before the first stop string."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.serving.streaming import TextStream

PIECES = ["a", "b", "ab", "ba", "aab", " ", "<s>"]


def said(stream: TextStream, token_ids: list[int]) -> list[str]:
    parts = []
    for token in token_ids:
        parts.append(stream.add(token))
        if stream.is_stopped:
            return parts
    return [*parts, stream.end()]


@given(
    token_ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=30),
    stops=st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3),
)
def test_the_parts_are_the_whole(token_ids: list[int], stops: list[str]) -> None:
    stream = TextStream(lambda ids: "".join(PIECES[each] for each in ids), stops)
    whole = "".join(PIECES[each] for each in token_ids)
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    assert "".join(said(stream, token_ids)) == (whole[: min(ends)[1]] if ends else whole)
    assert stream.is_stopped == bool(ends)


@given(text=st.text(max_size=40))
@settings(max_examples=200)
def test_characters_of_several_bytes_arrive_whole(text: str) -> None:
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    parts = said(stream, list(text.encode()))
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts)


def test_bytes_that_are_no_character_are_shown_in_the_end() -> None:
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    assert "".join(said(stream, [255, 254, 65, 195])) == "\ufffd\ufffdA\ufffd"


def test_nothing_is_held_longer_than_it_must() -> None:
    stream = TextStream(lambda ids: "".join(PIECES[each] for each in ids), ["bb"])
    assert [stream.add(each) for each in (0, 1, 0, 1)] == ["a", "", "ba", ""]
    assert stream.end() == "b"


def test_bytes_without_end_take_no_longer_and_longer() -> None:
    decoded: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return bytes(ids).decode(errors="replace")

    assert "".join(said(TextStream(decode), [0xE2] * 300 + [65])) == "\ufffd" * 300 + "A"
    assert max(decoded) < 40
