# Copyright 2026 The Latent Attention Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Pictures of a tiny model's attention: the page in a real browser against the model's maps, and the figures."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import visualize
from attention_pictures import draw_compression, octaves
from common import tiny_model
from influence import influence_through_latents
from test_heads import word_tokenizer


# 30 tokens, the last two in a chunk of their own; markup and a letter beyond ASCII must be shown as they are
TEXT = "the latent reads every token\nand writes what it found </script> é\n" * 2 + "the latent"
PIECES = re.findall(r"(?:\w+|[^\w\s]+)\s*", TEXT)  # of the tokens: a word or its punctuation, and the space behind it
LAYER, CHUNK, SINKS = 0, 4, 3
SCREENSHOT = Path(__file__).parents[1] / "out" / "tests" / "attention.png"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,800"
)
TOLERANCE = 0.01  # of a shade: the page holds three digits, the browser states two


def save_checkpoint(folder: Path, **overrides) -> str:
    tokenizer = word_tokenizer()
    settings = {"chunk_size": CHUNK, "num_sink_tokens": SINKS, **overrides}
    tiny_model(vocab_size=len(tokenizer), **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def run(checkpoint, text_file, output_dir, layer=LAYER):
    visualize.main([checkpoint, "--text", str(text_file), "--layer", str(layer), "--output_dir", str(output_dir)])


@pytest.fixture(scope="module")
def pictures(checkpoint, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    run(checkpoint, text_file, folder)
    return folder


@pytest.fixture(scope="module")
def outputs(checkpoint):
    """All maps of the model, straight from it."""
    model = visualize.load_model(checkpoint, LAYER)
    input_ids = torch.tensor([word_tokenizer()(TEXT)["input_ids"]])
    with torch.no_grad():
        return model(input_ids, output_attentions=True)


@pytest.fixture(scope="module")
def maps(checkpoint):
    input_ids = torch.tensor([word_tokenizer()(TEXT)["input_ids"]])
    return visualize.layer_maps(visualize.load_model(checkpoint, LAYER), input_ids, LAYER)


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(
            f"`{name}` is not installed, but the page is tested in a real browser: `make chromium` installs it."
        )
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(program("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, pictures):
    browser.get((pictures / "attention.html").as_uri())
    yield browser
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0  # no network


def latents(page):
    return page.find_elements(By.CSS_SELECTOR, "#latents button")


def tokens(page):
    return page.find_elements(By.CSS_SELECTOR, "#text [role=button]")


def shades(page, items) -> torch.Tensor:
    """How opaque the background of each is, as the browser shows it."""
    script = "return arguments[0].map((item) => getComputedStyle(item).backgroundColor)"
    colours = [re.findall(r"[\d.]+", colour) for colour in page.execute_script(script, items)]
    return torch.tensor([float(colour[3]) if len(colour) == 4 else 1.0 for colour in colours])


def assert_shaded(page, items, weights: torch.Tensor):
    expected = torch.zeros(len(items))
    expected[: len(weights)] = weights / weights.max()
    torch.testing.assert_close(shades(page, items), expected, atol=TOLERANCE, rtol=0)


def summary(page) -> str:
    return page.find_element(By.ID, "summary").text


def assert_names_the_strongest(sentence: str, weights: torch.Tensor):
    """The five tokens of largest weight, each by its number and its text, since words come more than once."""
    named = re.findall(r'(\d+) (".*?") \(', sentence)
    indices = [int(index) for index, _ in named]
    assert len(set(indices)) == 5
    assert [json.loads(piece) for _, piece in named] == [PIECES[index] for index in indices]
    torch.testing.assert_close(weights[indices], weights.topk(5).values, atol=0, rtol=0.01)


def compression(outputs, chunk: int, latent: int) -> torch.Tensor:
    return outputs.compression_attentions[LAYER][0, chunk, :, latent].mean(0)


def pressed(items) -> list[int]:
    return [index for index, item in enumerate(items) if item.get_attribute("aria-pressed") == "true"]


def test_a_latent_shades_the_tokens_that_it_has_read(page, outputs):
    last = outputs.compression_attentions[LAYER].shape[1] - 1
    assert len(tokens(page)) == outputs.attentions[LAYER].shape[2]
    assert_shaded(page, tokens(page), compression(outputs, last, 0))
    latents(page)[2].click()
    assert pressed(latents(page)) == [2]
    assert_shaded(page, tokens(page), compression(outputs, last, 2))
    assert summary(page).startswith("Latent 2 after 28 tokens.\nIt has read most of tokens ")
    assert_names_the_strongest(summary(page), compression(outputs, last, 2))
    SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
    page.save_screenshot(str(SCREENSHOT))


def test_the_slider_goes_back_to_what_was_read_before(page, outputs):
    last = outputs.compression_attentions[LAYER].shape[1] - 1
    slider = page.find_element(By.ID, "chunk")
    slider.send_keys(Keys.ARROW_LEFT)
    assert_shaded(page, tokens(page), compression(outputs, last - 1, 0))
    slider.send_keys(Keys.HOME)
    assert not shades(page, tokens(page)).any()
    assert "nothing" in summary(page)


def test_a_token_shades_the_latents_it_reads_and_earlier_tokens_only(page, outputs):
    maps = (outputs.attentions, outputs.refinement_attentions, outputs.compression_attentions)
    influence = influence_through_latents(*(kind[LAYER][0] for kind in maps), CHUNK)
    for token in (13, 29):
        tokens(page)[token].click()
        assert pressed(tokens(page)) == [token]
        assert pressed(latents(page)) == []
        assert_shaded(page, latents(page), outputs.attentions[LAYER][0, :, token].mean(0))
        assert_shaded(page, tokens(page), influence[token])
        assert_names_the_strongest(summary(page).split("\n")[1], influence[token])
        assert not shades(page, tokens(page))[token // CHUNK * CHUNK :].any()


def test_a_token_of_the_first_chunk_reads_latents_that_have_read_nothing(page, outputs):
    tokens(page)[1].click()
    assert_shaded(page, latents(page), outputs.attentions[LAYER][0, :, 1].mean(0))
    assert not shades(page, tokens(page)).any()


def test_the_keyboard_reaches_latents_and_tokens(page):
    latents(page)[0].send_keys(Keys.ARROW_RIGHT)
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert pressed(latents(page)) == [1]
    tokens(page)[0].send_keys(Keys.ARROW_RIGHT)
    page.switch_to.active_element.send_keys(Keys.SPACE)
    assert pressed(tokens(page)) == [1]


def test_the_page_shows_the_text_as_it_is(page):
    shown = [item.get_attribute("textContent").replace("↵", "") for item in tokens(page)]
    assert shown == PIECES


def test_the_label_of_a_chunk_stands_in_front_of_a_word(maps, browser, tmp_path):
    pieces = [" la", "tent", "s"] * (maps.retrieval.shape[0] // 3)
    about = {"chunk_size": CHUNK, "file": "", "layer": LAYER, "checkpoint": ""}
    visualize.write_page(maps, pieces, about, tmp_path / "page.html")
    browser.get((tmp_path / "page.html").as_uri())
    starts = [index for index, item in enumerate(tokens(browser)) if "starts-chunk" in item.get_attribute("class")]
    assert starts == list(range(CHUNK, len(pieces), CHUNK))
    labels = ["", "chunk 1", "chunk 2", "", "chunk 3", "chunk 4", "chunk 5", "", "chunk 6", "chunk 7", ""]
    assert browser.find_element(By.ID, "text").get_attribute("textContent") == " latents".join(labels)


def test_no_token_ends_the_pages_data_early(maps, tmp_path):
    pieces = ["</script>"] * maps.retrieval.shape[0]
    visualize.write_page(maps, pieces, {"chunk_size": CHUNK}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = page.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)["tokens"] == pieces


def test_a_token_without_text_of_its_own_is_shown(tmp_path):
    class Bytes:
        """As a tokenizer of bytes: the four of an emoji are tokens with the same place in the text."""

        def __call__(self, text, **kwargs):
            offsets = [(index, index + 1) for index, letter in enumerate(text) for _ in letter.encode()]
            return {"input_ids": list(text.encode()), "offset_mapping": offsets}

    file = tmp_path / "text.txt"
    file.write_text("a🙂b", encoding="utf-8")
    assert visualize.read_tokens(file, Bytes(), 1)[1] == ["a", "\ufffd", "\ufffd", "\ufffd", "🙂", "b"]


def test_a_long_text_is_cut_and_says_so(checkpoint, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(visualize, "MAX_TOKENS", 9)
    run(checkpoint, text_file, tmp_path)
    assert "has 30 tokens; the first 9 are used" in capsys.readouterr().out
    page = (tmp_path / "attention.html").read_text(encoding="utf-8")
    data = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    assert len(data["tokens"]) == len(data["influence"]) == 9


@pytest.mark.parametrize(
    ("text", "layer", "message"),
    [
        ("the latent reads", LAYER, "gives 3 tokens .* at least 5"),
        (TEXT, 2, "--layer is 2 but must be from 0 to 1"),
        (TEXT, 1, '--layer is 1, which is of the kind "local", but must be a layer with latents: 0\\.'),
    ],
)
def test_what_can_not_be_shown_is_an_error(text, layer, message, checkpoint, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        run(checkpoint, file, tmp_path, layer)


def test_every_layer_with_latents_can_be_shown():
    kinds = ["local", "latent", "both"]
    for layer in (1, 2):
        visualize.check_layer(layer, kinds)
    with pytest.raises(ValueError, match=r"a layer with latents: 1, 2\."):
        visualize.check_layer(0, kinds)
    with pytest.raises(ValueError, match="a layer with latents: this model has none"):
        visualize.check_layer(1, ["local", "local"])


def test_a_chunk_that_fills_a_page_is_an_error(checkpoint, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(visualize, "MAX_TOKENS", 4)
    with pytest.raises(ValueError, match="`chunk_size` of .* is 4 but must be less than 4, the tokens that a page"):
        run(checkpoint, text_file, tmp_path)


def test_a_text_of_another_encoding_is_an_error(checkpoint, tmp_path):
    (tmp_path / "text.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="text.txt must be UTF-8 but is not"):
        run(checkpoint, tmp_path / "text.txt", tmp_path)


def test_a_bidirectional_model_is_an_error(text_file, tmp_path):
    checkpoint = save_checkpoint(tmp_path, is_causal=False, num_sink_tokens=0)
    with pytest.raises(ValueError, match="is bidirectional but must be causal"):
        run(checkpoint, text_file, tmp_path)


def test_pictures_are_written_of_layers_with_and_without_local_attention(pictures, text_file, tmp_path):
    folders = [pictures]
    for pattern in (["latent"], ["latent", "local"]):
        folder = tmp_path / "-".join(pattern)
        settings = {"layer_pattern": pattern, "num_sink_tokens": SINKS if "local" in pattern else 0}
        run(save_checkpoint(folder, **settings), text_file, folder)
        folders.append(folder)
    for folder in folders:
        for name in ("compression", "distance", "attention"):
            assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_distances_count_the_second_half_of_the_text(maps, outputs):
    masses = visualize.distances(maps, CHUNK)
    local = outputs.local_attentions[LAYER][0].mean(0)  # (T, S + 2C)
    length = local.shape[0]
    second_half = range(length // 2, length)
    expected = sum(local[t, SINKS + CHUNK + t % CHUNK - 3] for t in second_half) / len(second_half)
    torch.testing.assert_close(masses["local attention"][3], expected, atol=1e-6, rtol=0)
    # Nothing is as far away as the first token except the sink that it is.
    torch.testing.assert_close(masses["local attention"][-1], local[-1, 0] / len(second_half), atol=1e-6, rtol=0)
    for mass in masses.values():
        assert mass.sum().item() == pytest.approx(1, abs=1e-5)


def test_distances_leave_out_the_first_chunk_where_latents_have_read_nothing():
    influence = torch.zeros(CHUNK + 2, CHUNK + 2)
    influence[CHUNK:, 0] = 1
    masses = visualize.distances(visualize.LayerMaps(None, None, influence, None), CHUNK)
    assert masses["through the latents"].tolist() == [0] * CHUNK + [0.5, 0.5]


def test_the_heat_map_is_of_the_tokens_that_have_been_read(checkpoint, text_file, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(visualize, "save_pictures", lambda compression, *_: drawn.append(compression))
    run(checkpoint, text_file, tmp_path)
    assert drawn[0].shape == (3, 28) and drawn[0].sum(1).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_a_model_is_shown_without_dropout(checkpoint):
    assert not visualize.load_model(checkpoint, LAYER).training


def test_octaves_sum_distances_that_double():
    mass = torch.arange(9.0)  # distances 0, 1, 2-3, 4-7, 8
    assert octaves(mass).tolist() == [0, 1, 2 + 3, 4 + 5 + 6 + 7, 8]


def test_the_heat_map_shows_means_of_runs_beside_the_mean_of_all():
    weights = torch.rand(3, 300, generator=torch.Generator().manual_seed(0))
    weights /= weights.sum(1, keepdim=True)
    axes = Figure().add_subplot()
    draw_compression(axes, weights)
    shown = torch.tensor(axes.images[0].get_array())
    expected = weights.view(3, 100, 3).mean(-1) / weights.mean(1, keepdim=True)
    torch.testing.assert_close(shown, expected, atol=1e-4, rtol=0)
