import pytest
from tokenizers import processors

from burnish.data.chat import Chat, render_prompt
from burnish.errors import DataError
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import Message, Task

TASK = Task(
    id="t",
    messages=(Message(role="system", content="Be brief."), Message(role="user", content="1+1?")),
    answer="2",
)


def render(tokenizer, **limits):
    return render_prompt(
        Chat(tokenizer=tokenizer, stop_token_ids=(2,)), TASK, **{"context_length": 100, "max_tokens": 8, **limits}
    )


def test_the_template_leads_up_to_the_assistant() -> None:
    tokenizer = make_byte_tokenizer()
    text = tokenizer.decode(render(tokenizer).token_ids)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_plain_text_gets_the_tokenizers_own_first_token() -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    ids = render(tokenizer).token_ids
    assert ids[0] == 1 and tokenizer.decode(ids[1:]) == "Be brief.\n\n1+1?\n\n"


def test_a_template_that_refuses_is_one_line() -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match="refuses the conversation: System role not supported"):
        render(tokenizer)


def test_the_last_token_of_the_context_can_be_used() -> None:
    tokenizer = make_byte_tokenizer()
    length = len(render(tokenizer).token_ids)
    assert render(tokenizer, context_length=length + 8)
    with pytest.raises(DataError, match=f"a prompt of {length} tokens and max_tokens=8 exceed"):
        render(tokenizer, context_length=length + 7)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]


def scored_text(tokenizer, branch) -> list[str]:
    """The runs of scored tokens, decoded."""
    runs: list[list[int]] = []
    previous = None
    for position in branch.scored:
        if previous is None or position != previous + 1:
            runs.append([])
        runs[-1].append(branch.token_ids[position])
        previous = position
    return [tokenizer.decode(run) for run in runs]


def test_every_assistant_turn_is_scored_up_to_its_end() -> None:
    tokenizer = make_byte_tokenizer()
    chat = Chat(tokenizer=tokenizer, stop_token_ids=(2,))
    prompt_ids, branch = chat.conversation(CHAT, only_last=False)
    assert scored_text(tokenizer, branch) == ["2<|im_end|>", "4<|im_end|>"]
    whole = tokenizer.decode([*prompt_ids, *branch.token_ids])
    assert whole == tokenizer.apply_chat_template(CHAT, tokenize=False).removesuffix("\n")
    # the prompt is what the model is asked with when it is used
    assert tokenizer.decode(prompt_ids) == tokenizer.apply_chat_template(
        CHAT[:2], tokenize=False, add_generation_prompt=True
    )


def test_only_the_last_turn() -> None:
    tokenizer = make_byte_tokenizer()
    chat = Chat(tokenizer=tokenizer, stop_token_ids=(2,))
    prompt_ids, branch = chat.conversation(CHAT, only_last=True)
    assert scored_text(tokenizer, branch) == ["4<|im_end|>"]
    assert "2<|im_end|>" in tokenizer.decode(prompt_ids)


def test_a_plain_answer_gets_an_end() -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = None
    chat = Chat(tokenizer=tokenizer, stop_token_ids=(2,))
    _, branch = chat.conversation(CHAT[1:3], only_last=True)
    assert tokenizer.decode(branch.token_ids) == "2<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_the_last_turn_suffices() -> None:
    tokenizer = make_byte_tokenizer()
    # as reasoning models do: only the last answer keeps its thoughts
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}"
        "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    chat = Chat(tokenizer=tokenizer, stop_token_ids=(2,))
    with pytest.raises(DataError, match="changes earlier turns when a turn is added: learn from the last turn only"):
        chat.conversation(CHAT, only_last=False)
    _, branch = chat.conversation(CHAT, only_last=True)
    assert tokenizer.decode(branch.token_ids) == "4<|im_end|>"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (CHAT[:2], "no assistant turn"),
        (CHAT[2:], "begins with the assistant"),
    ],
)
def test_conversations_that_teach_nothing(messages, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Chat(tokenizer=make_byte_tokenizer(), stop_token_ids=(2,)).conversation(messages, only_last=False)


def test_tools_reach_the_template() -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = (
        "{% if tools %}{{ tools | length }} tools {% endif %}"
        "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    chat = Chat(tokenizer=tokenizer, stop_token_ids=(2,))
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    prompt_ids, _ = chat.conversation(CHAT[1:3], only_last=True, tools=[tool])
    assert tokenizer.decode(prompt_ids).startswith("1 tools ")


def test_a_token_that_reaches_over_the_boundary_is_not_used() -> None:
    """What the model is trained to say is tokenised after the prompt as it stands, not across its end."""
    tokenizer = make_byte_tokenizer()
    chat = Chat(tokenizer=tokenizer, stop_token_ids=(2,))

    class Merging:
        chat_template = None

        def __call__(self, text, add_special_tokens):
            ids = {"a": [1], "b": [2], "ab": [3]}
            return {"input_ids": ids[text]}

    assert Chat(tokenizer=Merging(), stop_token_ids=()).following_ids("a", [1], "b") == [2]
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    assert chat.following_ids("a", before, "b") == tokenizer("b", add_special_tokens=False)["input_ids"]
