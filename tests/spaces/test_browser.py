"""The pages in a real browser: draw, upload, move, download; desktop and phone width, light and dark, keyboard."""

import shutil
import time
from pathlib import Path

import pytest

import hf_vistok

from .conftest import SCREENSHOTS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PICTURES = Path(hf_vistok.__file__).parent / "pictures"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
WAIT = 60_000  # milliseconds; two cores may be busy

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the dev extra)")
if CHROMIUM is None:
    pytest.skip("there is no Chromium here (apt-get install chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Opens an address; at the end nothing may have gone wrong on the page, nor left the machine."""
    contexts, wrong = [], []

    def watch(message) -> None:
        if message.type == "error":
            wrong.append(f"console: {message.text}")

    def request(asked) -> None:
        if not asked.url.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:")):
            wrong.append(f"left the machine: {asked.url}")

    def open_page(url: str, size=DESKTOP, **options):
        context = browser.new_context(viewport=size, permissions=["clipboard-read", "clipboard-write"], **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", watch)
        page.on("pageerror", lambda error: wrong.append(f"page: {error}"))
        page.on("request", request)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong, wrong


def shoot(page, name: str) -> None:
    """A screenshot to look at; the folder is not in git."""
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=str(SCREENSHOTS / f"{name}.png"), full_page=True)


def assert_fits(page) -> None:
    """Nothing is wider than the window."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1, f"{wide} pixels too wide"


def field(page, name: str):
    return page.locator(f"#{name} textarea, #{name} input").first


def until(page, condition: str) -> None:
    page.wait_for_function(condition, timeout=WAIT)


def drawn(page) -> None:
    """Waits for the end of a drawing: the link is the last thing that comes."""
    until(page, "(document.querySelector('#link textarea, #link input')?.value || '').startsWith('http')")


def draw_something(page) -> None:
    field(page, "prompt").fill("a red apple")
    page.click("#draw")
    drawn(page)


# ---------------------------------------------------------------------- text to image


def test_draw_and_watch(text_space, visit):
    page = visit(text_space[1])
    page.wait_for_selector("#prompt")
    page.evaluate(
        """() => {
            window.seen = [];
            const note = () => {
                const text = document.querySelector('#facts')?.innerText.trim();
                if (text && window.seen.at(-1) !== text) window.seen.push(text);
            };
            new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    draw_something(page)
    seen = page.evaluate("window.seen")
    stages = [text for text in seen if "of 8 tokens" in text]
    assert stages, f"the picture did not sharpen in between: {seen}"
    assert "8 tokens · 7 bytes a picture" in seen[-1]
    assert page.locator("#pictures .thumbnail-item img").count() == 4
    assert len(field(page, "tokens").input_value().splitlines()) == 4
    shoot(page, "text_to_image_desktop")
    assert_fits(page)


@pytest.mark.slow
def test_copy_download_and_redraw(text_space, visit):
    page = visit(text_space[1], accept_downloads=True)
    draw_something(page)
    tokens = field(page, "tokens").input_value()
    page.locator("#tokens button").first.click()
    until(page, "navigator.clipboard.readText().then(text => text.split('\\n').length == 4)")
    assert page.evaluate("navigator.clipboard.readText()").strip() == tokens.strip()
    before = page.locator("#pictures .thumbnail-item img").first.get_attribute("src")
    field(page, "tokens").fill(tokens.replace(tokens.split()[0], "0", 1))
    page.click("#again")
    until(page, "document.querySelector('#facts').innerText.includes('given tokens')")
    assert page.locator("#pictures .thumbnail-item img").first.get_attribute("src") != before
    page.locator("#pictures .thumbnail-item").first.click()
    with page.expect_download() as download:
        page.get_by_label("Download").first.click()
    assert Path(download.value.path()).read_bytes()[:4] == b"\x89PNG"


def test_a_link_opens_with_its_pictures(text_space, visit):
    page = visit(text_space[1])
    draw_something(page)
    link, tokens = field(page, "link").input_value(), field(page, "tokens").input_value()
    other = visit(link)
    drawn(other)
    assert field(other, "tokens").input_value() == tokens and field(other, "prompt").input_value() == "a red apple"


@pytest.mark.slow
def test_a_damaged_link_says_so(text_space, visit):
    page = visit(f"{text_space[1]}?prompt=a&seed=many")
    page.get_by_text("This link is damaged").wait_for()


@pytest.mark.slow
def test_an_empty_prompt_gets_a_message(text_space, visit):
    page = visit(text_space[1])
    page.wait_for_selector("#prompt")
    page.click("#draw")
    page.get_by_text("Describe a picture first").wait_for()


@pytest.mark.slow
def test_keyboard_only(text_space, visit):
    """Tab reaches the prompt and shows where it is; Enter draws."""
    page = visit(text_space[1])
    page.wait_for_selector("#prompt")
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#prompt') !== null"):
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.type("a blue bird")
    page.keyboard.press("Enter")
    drawn(page)
    assert "a+blue+bird" in field(page, "link").input_value()


@pytest.mark.slow
def test_examples_and_new_seeds(text_space, visit):
    page = visit(text_space[1])
    page.get_by_text("grinning face", exact=True).click()
    until(page, "document.querySelector('#facts').innerText.includes('bytes a picture')")
    assert field(page, "prompt").input_value() == "grinning face"
    page.click("#shuffle")
    drawn(page)
    assert page.get_by_label("Seed").input_value() != "0"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "query"), [("phone", PHONE, ""), ("dark", DESKTOP, "?__theme=dark")])
def test_text_to_image_looks(text_space, visit, name, size, query):
    page = visit(text_space[1] + query, size)
    draw_something(page)
    time.sleep(0.5)
    shoot(page, f"text_to_image_{name}")
    assert_fits(page)
    dark = page.evaluate(
        "document.body.classList.contains('dark') || document.documentElement.classList.contains('dark')"
    )
    assert dark == (name == "dark")
    if name == "phone":
        places = [page.locator(f"#{part}").bounding_box()["y"] for part in ("draw", "pictures", "tokens")]
        assert places == sorted(places), "the pictures come right below the button"


# ---------------------------------------------------------------------- the lab


def opened(visit, url: str, size=DESKTOP):
    page = visit(url, size)
    until(page, "document.querySelector('#facts')?.innerText.includes('dB')")
    return page


def open_tab(page, name: str) -> None:
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.is_visible():
        tab.click()
    else:  # a narrow window hides it behind three dots
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).first.click()


def test_upload_and_slide(lab_space, visit, tmp_path):
    page = opened(visit, lab_space[1])
    assert "32 tokens · 64 bytes" in page.inner_text("#facts")
    before = page.locator("#slider img").last.get_attribute("src")
    page.locator("#picture").get_by_label("Remove Image").click()
    page.set_input_files("#picture input[type=file]", str(PICTURES / "lemon.png"))
    until(page, f"document.querySelectorAll('#slider img').item(1)?.getAttribute('src') !== {before!r}")
    page.locator("#tokens input[type=number]").fill("4")
    page.locator("#tokens input[type=number]").press("Tab")
    until(page, "document.querySelector('#facts').innerText.includes('4 tokens · 8.0 bytes')")
    assert page.locator("#ladder .thumbnail-item").count() == 6
    slider = page.locator("#slider").bounding_box()
    handle = page.locator("#slider").get_by_test_id("slider")
    start = handle.bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, slider["y"] + slider["height"] / 2)
    page.mouse.down()
    page.mouse.move(slider["x"] + slider["width"] * 0.2, slider["y"] + slider["height"] / 2, steps=4)
    page.mouse.up()
    assert handle.bounding_box()["x"] < start["x"] - 20, "the handle follows"
    shoot(page, "lab_desktop_reconstruction")
    assert_fits(page)


@pytest.mark.slow
def test_replace_a_token(lab_space, visit):
    page = opened(visit, lab_space[1])
    open_tab(page, "Tokens")
    page.locator("#chips label").nth(2).click()
    until(page, "document.querySelector('#change').innerText.includes('Token 3')")
    page.click("#keep")
    new = field(page, "new").input_value()
    until(page, f"document.querySelector('#ids textarea, #ids input').value.split(' ')[2] === '{new}'")
    shoot(page, "lab_desktop_tokens")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "query"), [("phone", PHONE, ""), ("dark", DESKTOP, "?__theme=dark")])
def test_lab_looks(lab_space, visit, name, size, query):
    page = opened(visit, lab_space[1] + query, size)
    for tab in ("Reconstruction", "JPEG and WebP", "Tokens", "Two tokenizers", "Two pictures"):
        open_tab(page, tab)
        time.sleep(1)
        shoot(page, f"lab_{name}_{tab.replace(' ', '_').lower()}")
        assert_fits(page)


@pytest.mark.slow
def test_a_file_that_is_no_picture(lab_space, visit, tmp_path):
    page = opened(visit, lab_space[1])
    (tmp_path / "no.png").write_bytes(b"this is no picture")
    page.locator("#picture").get_by_label("Remove Image").click()
    page.set_input_files("#picture input[type=file]", str(tmp_path / "no.png"))
    page.get_by_text("is not a picture").first.wait_for()
