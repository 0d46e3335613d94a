"""Stop strings are found at the token and place where decoding everything at every token finds them."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from burnish.models.fetch import cache_folder
from burnish.models.tiny import make_byte_tokenizer
from burnish.rollout.generators.stopping import StopStrings

REAL = cache_folder() / "models" / "smollm2-135m"
EXAMPLES = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PIECES = ["a", "ab", "▁", "▁a", "ba", "你", "▁▁▁"]


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As of Llama 2: bytes that are no character spoil the run they stand in, and the first space goes."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    core = Tokenizer(
        models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def smollm2() -> PreTrainedTokenizerBase:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not there: burnish model get smollm2-135m")
    return AutoTokenizer.from_pretrained(REAL)


def first_stop(text_of: Callable[[Sequence[int]], str], stops, token_ids) -> tuple[int, int] | None:
    """(tokens, place) of the first stop, by decoding everything."""
    for count in range(1, len(token_ids) + 1):
        text = text_of(token_ids[:count])
        if found := [text.find(stop) for stop in stops if stop in text]:
            return count, min(found)
    return None


@pytest.mark.parametrize("make", [make_byte_tokenizer, sentencepiece_like, smollm2])
def test_as_if_everything_was_decoded(make) -> None:
    tokenizer = make()
    written = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("a b", "  a ab", "é你好👍🏽", "ends.\n\nQuestion:", "naïve")
    ]
    odd = [0, 1, 2, len(tokenizer) + 5]  # special ones, and one that the model has and the tokenizer has not
    few = st.sampled_from(sorted({token for ids in written for token in ids} | set(odd)))
    tokens = st.one_of(
        few.map(lambda token: [token]),
        st.sampled_from(written),
        st.integers(0, len(tokenizer) - 1).map(lambda token: [token]),
    )

    def text_of(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    @EXAMPLES
    @given(st.data(), st.lists(tokens, min_size=1, max_size=30))
    def holds(data, parts) -> None:
        ids = [token for part in parts for token in part]
        text = text_of(ids)
        stops = []
        for _ in range(data.draw(st.integers(1, 3))):  # most of them straddle tokens, and lie late in the text
            end = len(text) - data.draw(st.integers(0, max(0, len(text) - 1)))
            stops.append(text[max(0, end - data.draw(st.integers(1, 12))) : end] or "x")
        stop_strings = StopStrings(text_of, stops)
        found = None
        for count in range(1, len(ids) + 1):
            if (place := stop_strings.position(ids[:count])) is not None:
                found = count, place
                break
        assert found == first_stop(text_of, stops, ids)

    holds()


@pytest.mark.parametrize(
    ("make", "tokens", "stop"),
    [
        (make_byte_tokenizer, ["Ġ", "a", *["<|im_end|>"] * 40, "b"], "ab"),
        (sentencepiece_like, ["a", *[f"<0x{byte:02X}>" for byte in "你你你👍".encode()]], "👍"),
        (sentencepiece_like, ["▁", "a", *["<0x0A>"] * 20, "<0xE4>"], "a\ufffd"),
        (sentencepiece_like, ["<0xE4>", *[f"<0x{byte:02X}>" for byte in ("你" * 9).encode()], "a"], "\ufffda"),
    ],
    ids=[
        "tokens without text",
        "a window that begins in a character",
        "a byte that spoils those before it",
        "a byte before the window that spoils it",
    ],
)
def test_the_stop_is_further_back_than_its_bytes(make, tokens: list[str], stop: str) -> None:
    tokenizer = make()
    ids = tokenizer.convert_tokens_to_ids(tokens)

    def text_of(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    stop_strings = StopStrings(text_of, [stop])
    assert [stop_strings.position(ids[:count]) for count in range(1, len(ids))] == [None] * (len(ids) - 1)
    assert stop_strings.position(ids) == text_of(ids).index(stop)


def test_most_of_a_long_text_is_not_decoded_again() -> None:
    tokenizer = make_byte_tokenizer()
    decoded = []

    def text_of(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    ids = tokenizer("a long text, " * 40)["input_ids"]
    stop_strings = StopStrings(text_of, ("\n\n", "Question:"))
    assert all(stop_strings.position(ids[:count]) is None for count in range(1, len(ids) + 1))
    assert max(decoded) < 20
