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
    with pytest.raises(DataError, match=f"a prompt of {length} tokens and rollout.max_tokens=8 exceed"):
        render(tokenizer, context_length=length + 7)
