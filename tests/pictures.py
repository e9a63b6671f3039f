"""Takes the README's pictures: `make pictures` writes docs/pictures/ from a real server and browser.

Shows the page, a heatmap, and the notebook with its stored outputs. Their texts need fonts (Debian: `fonts-noto-core`).
"""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from PIL import Image

from tests.browser import browser
from tests.conftest import BUNDLED
from tests.serving import ROOT, Server

PICTURES = ROOT / "docs" / "pictures"
SENTENCE = "the red cat sees a dog"
MAX_BYTES = 200_000
SMOLLM2 = "smollm2-135m-instruct-q4"


def main():
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as data, Server(Path(data)) as server, browser() as chromium:
        request = {"model": "lookup-gpt2", "method": "input_x_gradient", "step_scores": ["probability"]}
        server.run(**request, input_text="Anna likes tea. Ben likes milk. Anna likes")
        compared = server.run(
            model="phrasebook-t5", methods=["saliency", "integrated_gradients", "occlusion"], input_text=SENTENCE
        )
        translated = server.run(
            model="phrasebook-t5", method="saliency", input_text=SENTENCE, step_scores=["probability", "entropy"]
        )
        for name, job_id, scheme, width in (
            ("heatmap", translated, "light", 1200),
            ("heatmap-dark", translated, "dark", 1200),
            ("comparison", compared, "light", 1400),
        ):
            page = chromium.new_page(
                color_scheme=scheme, viewport={"width": width, "height": 800}, device_scale_factor=1.5
            )
            page.goto(f"{server.url}/#/jobs/{job_id}?pos=2")
            page.locator(".tokens").first.wait_for()
            page.locator(".jobs li").nth(2).wait_for()
            page.locator(".tokens .token").nth(1).hover()
            save(page.screenshot(full_page=True), PICTURES / f"{name}.png")
            page.close()

        picture_heatmap(chromium, server, translated)
        picture_passages(chromium, server)
        picture_notebook(chromium)


# The answer has a day that no passage gives for the bridge: "The Golden Gate Bridge opened on October 28, 1937 ...".
PASSAGES = """Here are three passages.

1. The Eiffel Tower was built between 1887 and 1889 for the World's Fair in Paris. It is 330 metres tall.

2. The Statue of Liberty was designed by Frédéric Auguste Bartholdi and dedicated on October 28, 1886.

3. The Golden Gate Bridge opened in 1937. Its chief engineer was Joseph Strauss.

When did the Golden Gate Bridge open, and who was its chief engineer?"""


def picture_passages(chromium, server):
    """Pictures of a chat model's answer from three passages: what the day in it depended on, in light and dark."""
    if not (BUNDLED / SMOLLM2).exists():
        print("without the answer of a chat model: run make smollm2 first")
        return
    job_id = server.run(
        model=SMOLLM2, method="input_x_gradient", messages=[{"role": "user", "content": PASSAGES}],
        generation_args={"max_new_tokens": 28}, step_scores=["probability"],
    )  # fmt: skip
    (sequence,) = server.result(job_id, decode_tokens=True)["sequence_attributions"]
    generated = [token["text"] for token in sequence["target"][sequence["attr_pos_start"] :]]
    for name, scheme in (("passages", "light"), ("passages-dark", "dark")):
        page = chromium.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 760}, device_scale_factor=1.5)
        page.goto(f"{server.url}/#/jobs/{job_id}?pos={generated.index(' October')}&template=no")
        page.locator(".tokens .heat:not(.template)").first.wait_for()
        page.locator(".bars li").first.wait_for()
        save(page.screenshot(), PICTURES / f"{name}.png")
        page.close()


def picture_heatmap(chromium, server, job_id):
    """A picture of the `html` view of a job."""
    page = chromium.new_page(viewport={"width": 900, "height": 400}, device_scale_factor=1.5)
    page.goto(f"{server.url}/attribution/jobs/{job_id}/results?format=html")
    save(page.screenshot(full_page=True), PICTURES / "view.png")
    page.close()


def picture_notebook(chromium):
    """A picture of the notebook, up to its first plot."""
    notebook = nbformat.read(ROOT / "inseq_api_visualization.ipynb", as_version=4)
    drawn = [
        index
        for index, cell in enumerate(notebook.cells)
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    ]
    notebook.cells = notebook.cells[: drawn[0] + 1]
    html, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
    page = chromium.new_page(viewport={"width": 1000, "height": 800}, device_scale_factor=1.4)
    page.route("**/*", lambda route: route.abort())  # load nothing from the network
    page.set_content(html, wait_until="domcontentloaded")
    save(page.screenshot(full_page=True), PICTURES / "notebook.png")
    page.close()


def save(screenshot, file):
    """Save a screenshot with 256 colours, which is enough for it and makes the file five times smaller."""
    Image.open(BytesIO(screenshot)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    assert file.stat().st_size <= MAX_BYTES, (file, file.stat().st_size)


if __name__ == "__main__":
    main()
