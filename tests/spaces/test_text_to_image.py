"""The text-to-image Space through its API: streams, links, tokens, bad input, MCP."""

import asyncio
import json
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from gradio_client.exceptions import AppError
from PIL import Image

PROMPT = "a red apple"


def pixels(gallery):
    """Pictures of a gallery's answer."""
    return [np.asarray(Image.open(item["image"]).convert("RGB")) for item in gallery]


def generate(client, **options):
    return client.predict(**{"prompt": PROMPT, "pictures": 2, "steps": 2, **options}, api_name="/generate")


def test_the_stream_sharpens(text_client):
    job = text_client.submit(prompt=PROMPT, pictures=2, seed=5, api_name="/generate")
    job.result(timeout=60)
    counts = [len(answer[1].splitlines()[0].split()) for answer in job.outputs()]
    assert counts == [1, 2, 4, 8]
    firsts = [answer[1].splitlines()[0].split() for answer in job.outputs()]
    assert all(firsts[-1][: len(ids)] == ids for ids in firsts), "tokens are only added"
    gallery, tokens, facts, link = job.outputs()[-1]
    assert [item["caption"] for item in gallery] == ["seed 5", "seed 6"]
    assert len(tokens.splitlines()) == 2 and facts.startswith("8 tokens · 7 bytes a picture")
    assert parse_qs(link[1:])["seed"] == ["5"]
    assert "1 of 8 tokens" in job.outputs()[0][2]


def test_a_seed_is_a_picture(text_client):
    first, again, other = (generate(text_client, seed=seed) for seed in (1, 1, 2))
    assert first[1] == again[1] and first[1] != other[1]
    for one, two in zip(pixels(first[0]), pixels(again[0]), strict=True):
        assert np.array_equal(one, two)
    assert first[1].splitlines()[1] == other[1].splitlines()[0], "the next picture has the next seed"


def test_a_link_reproduces_its_pictures(text_client, text_space):
    """What the page does with a link: its settings give the same answer."""
    import links

    answer = generate(text_client, seed=9, tokens=4, prior_guidance=2.5, guidance=1.5)
    query = {name: values[0] for name, values in parse_qs(urlparse(answer[3]).query).items()}
    wish = links.from_query(query)
    assert links.to_query(wish) == answer[3]
    again = text_client.predict(**vars(wish), api_name="/generate")
    assert again[1] == answer[1] and all(map(np.array_equal, pixels(again[0]), pixels(answer[0])))
    assert links.from_query({}) is None
    with pytest.raises(ValueError, match="damaged"):
        links.from_query({"prompt": "a", "seed": "many"})


def test_tokens_draw_the_same_pictures(text_client):
    gallery, tokens, *_ = generate(text_client, seed=3)
    drawn, facts = text_client.predict(tokens=tokens, prompt=PROMPT, seed=3, steps=2, api_name="/draw_tokens")
    for one, two in zip(pixels(gallery), pixels(drawn), strict=True):
        assert np.abs(one.astype(int) - two).max() <= 1
    assert "8 given tokens" in facts
    assert len(text_client.predict(tokens=tokens, prompt="", steps=2, api_name="/draw_tokens")[0]) == 2, (
        "also without a text"
    )
    changed = tokens.replace(tokens.split()[0], "0", 1)
    other, _ = text_client.predict(tokens=changed, prompt=PROMPT, seed=3, steps=2, api_name="/draw_tokens")
    assert not np.array_equal(pixels(other)[0], pixels(drawn)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "Describe a picture"),
        ({"prompt": " \n\t "}, "Describe a picture"),
        ({"prompt": "\u0000\u200b\u202e"}, "Describe a picture"),
        ({"prompt": "apple " * 2000}, "too long"),
        ({"prompt": "apple " * 50}, "at most"),
        ({"pictures": 99}, "8"),
        ({"pictures": -1}, "1"),
        ({"tokens": 9}, "8"),
        ({"steps": 1000}, "50"),
        ({"guidance": -3}, "0"),
        ({"prior_guidance": 1e9}, "20"),
        ({"seed": -5}, "0"),
        ({"style": "crayon"}, "choices"),
    ],
)
def test_bad_input_gets_a_friendly_message(text_client, options, message):
    with pytest.raises(AppError) as caught:
        generate(text_client, **options)
    text = str(caught.value)
    assert message in text and "Traceback" not in text and "site-packages" not in text


@pytest.mark.parametrize("prompt", ["яблоко", "苹果", "تفاحة", "a\u0007 red\u0000 apple", "🍎", "<b>a cat</b>"])
def test_any_script_draws(text_client, prompt):
    gallery, _, facts, _ = generate(text_client, prompt=prompt, pictures=1, tokens=2)
    assert len(gallery) == 1 and "2 tokens" in facts


def test_unknown_words_are_named(text_client):
    assert "not in its vocabulary: xylophone" in generate(text_client, prompt="a xylophone", pictures=1)[2]
    assert "vocabulary" not in generate(text_client, pictures=1)[2]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("", "no tokens yet"),
        ("1 2 x", "whole numbers"),
        ("1 -2", "whole numbers"),
        ("1 ٣", "whole numbers"),
        (",", "lines"),
        ("1 2\n3", "same number of tokens"),
        ("1\n" * 9, "1 to 8 lines"),
        ("1 " * 9, "1 to 8."),
        ("96", "0 to 95"),
        ("1 " * 20000, "too much"),
    ],
)
def test_bad_tokens(text_client, tokens, message):
    with pytest.raises(AppError, match=message):
        text_client.predict(tokens=tokens, prompt=PROMPT, api_name="/draw_tokens")


def test_messages_are_escaped(text_client):
    """Messages are shown as HTML, so what a visitor typed must not become markup."""
    with pytest.raises(AppError) as caught:
        text_client.predict(tokens="<img/src=x>", prompt=PROMPT, api_name="/draw_tokens")
    assert "<img" not in str(caught.value) and "&lt;img" in str(caught.value)


def test_unexpected_errors_stay_inside(text_space, text_client, monkeypatch):
    import painting

    def broken(*args, **kwargs):
        raise KeyError("secret/path")

    monkeypatch.setattr(painting.pipeline(), "stream", broken)
    with pytest.raises(AppError) as caught:
        generate(text_client)
    assert "went wrong" in str(caught.value) and "secret" not in str(caught.value)


def test_every_argument_is_documented(text_client):
    info = text_client.view_api(return_format="dict")["named_endpoints"]
    assert set(info) == {"/generate", "/draw_tokens"}
    names = [parameter["parameter_name"] for parameter in info["/generate"]["parameters"]]
    assert names == ["prompt", "style", "seed", "pictures", "tokens", "prior_guidance", "guidance", "steps"]


def mcp_tools(url):
    """Tools of the page's MCP server by name, through the real client."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def ask():
        async with (
            streamablehttp_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return {tool.name: tool for tool in (await session.list_tools()).tools}

    return asyncio.run(asyncio.wait_for(ask(), 60))


def assert_documented(tools, wanted):
    assert {name.rpartition("app_")[2] for name in tools} == wanted
    for tool in tools.values():
        assert len(tool.description) > 40, tool.name
        for name, schema in tool.inputSchema["properties"].items():
            assert len(schema.get("description", "")) > 8, (tool.name, name, json.dumps(schema))


def test_mcp(text_space):
    assert_documented(mcp_tools(text_space[1]), {"generate", "draw_tokens"})
