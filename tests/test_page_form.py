"""The form of the page at `/` in a real browser: models, chat, methods, estimates, keyboard, and texts to copy."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from attribution.catalogue import inseq_catalogue
from attribution.estimates.method_costs import cost_of
from tests import chat_models
from tests.conftest import LOOKUP, PHRASEBOOK
from tests.page import address, field, opened_job
from tests.serving import ROOT

CHAT = "chat-qwen2"
HARD = "Anna's \"tea\" $HOME `ls` \\n \\ 100% !\n-x é 🙂 {} 'end'"


@pytest.fixture(scope="module")
def chat_model(model_dir):
    folder = model_dir / CHAT
    return (folder if folder.exists() else chat_models.build(CHAT, folder)).name


def fold(page, title):
    return page.locator("details.fold > summary", has_text=title)


def submitted(served, page):
    """Click Attribute; returns the request of the job that the page then shows."""
    page.get_by_role("button", name="Attribute", exact=True).click()
    expect(page.locator(".job-view")).to_be_visible()
    return served.job(re.search(r"#/jobs/(\w+)", address(page)).group(1))["request"]


# Keyboard


def test_the_button_is_eight_tabs_away_and_ctrl_enter_submits(served, open_page):
    page = open_page(served)
    button = page.get_by_role("button", name="Attribute", exact=True)
    expect(button).to_be_visible()
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "submit":
            break
    expect(button).to_be_focused()
    field(page, "/input_text").press("Control+Enter")
    first = opened_job(page)
    page.goto(f"{served.url}/#/")
    fold(page, "Seed, limits and tags").click()
    field(page, "/seed").fill("7")
    field(page, "/seed").press("Meta+Enter")
    expect(page.locator(".job-view")).to_be_visible()
    second = opened_job(page)
    assert second != first
    assert served.job(second)["request"]["seed"] == 7


# Models


def test_models_are_chosen_from_a_list_that_describes_them(served, open_page, chat_model):
    page = open_page(served)
    model, popup = field(page, "/model"), page.get_by_role("listbox", name="models")
    expect(model).to_have_attribute("aria-expanded", "false")
    model.click()
    models = served.client.get("/attribution/models").json()
    listed = {each["name"]: each for each in models["available"]}
    shown = popup.get_by_role("option").evaluate_all("all => all.map(each => each.querySelector('.value').textContent)")
    assert set(shown) == set(listed) | {each["name"] for each in models["loaded"]}  # a file of a folder is only loaded
    chat = popup.get_by_role("option", name=chat_model)
    expect(chat).to_contain_text("Qwen2ForCausalLM")
    expect(chat).to_contain_text(
        f"{listed[chat_model]['parameters'] / 1000:.0f} K parameters · 128 tokens of context · chat"
    )
    expect(
        popup.get_by_role("group", name=re.compile("On this machine|Loaded")).get_by_role("option", name=chat_model)
    ).to_have_count(1)
    # The name that the field has is active, and the arrows move from there.
    active = popup.locator('[aria-selected="true"]')
    expect(active).to_contain_text(LOOKUP)
    assert model.get_attribute("aria-activedescendant") == active.get_attribute("id")
    model.fill("qwen2")
    kinds = {each["name"]: each.get("class") for each in [*models["available"], *models["loaded"]]}
    matching = [name for name in shown if "qwen2" in f"{name} {kinds[name] or ''}".lower()]
    expect(popup.get_by_role("option")).to_have_count(len(matching))
    page.keyboard.press("Escape")
    expect(popup).to_be_hidden()
    expect(model).to_have_value("qwen2")
    model.fill("chat-qwen")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(model).to_have_value(chat_model)
    expect(page.get_by_label("Chat", exact=True)).to_be_checked()  # its tokenizer has a template
    # A name that is nearly right, and one that is only on the Hub.
    model.fill("lokup-gpt")
    expect(popup.get_by_role("group", name="Near names").get_by_role("option", name=LOOKUP)).to_be_visible()
    expect(page.locator(".subject .help")).to_contain_text(f"Near names: {LOOKUP}")
    model.fill("some-org/some-model@main")
    expect(popup).to_be_hidden()
    expect(page.locator(".subject .help")).to_contain_text("the Hugging Face Hub is asked for it")


# Chat


def test_a_conversation_is_written_in_rows(served, open_page, chat_model):
    page = open_page(served)
    field(page, "/input_text").fill("Who is Anna?")
    field(page, "/model").fill(chat_model)
    # The text becomes the user's words, and back.
    expect(field(page, "/messages/0/content")).to_have_value("Who is Anna?")
    page.get_by_label("Text", exact=True).check()
    expect(field(page, "/input_text")).to_have_value("Who is Anna?")
    field(page, "/input_text").fill("Who is Ben?")
    page.get_by_label("Chat", exact=True).check()
    expect(field(page, "/messages/0/content")).to_have_value("Who is Ben?")
    page.get_by_role("button", name="Add a system prompt").click()
    expect(field(page, "/messages/0/content")).to_be_focused()
    page.keyboard.type("Be brief.")
    for text in ("Ben is", "dropped"):
        page.get_by_role("button", name="Add a message").click()
        page.keyboard.type(text)
    expect(field(page, "/messages/2/role")).to_have_value("assistant")
    page.get_by_role("button", name="Remove message 4").click()
    expect(page.locator(".message .help")).to_have_text("The model continues this turn.")
    page.get_by_role("button", name="Move message 3 up").click()
    page.get_by_role("button", name="Move message 2 down").click()
    page.get_by_label("Text", exact=True).check()  # the rows are kept behind the text
    page.get_by_label("Chat", exact=True).check()
    fold(page, "Several conversations").click()
    page.get_by_role("button", name="Add a conversation").click()
    field(page, "/messages/1/0/content").fill("And Anna?")
    fold(page, "Generated text").click()
    for index, reply in enumerate((" kind", "So is she")):
        field(page, f"/generated_text/{index}").fill(reply)
    expect(field(page, "/generation_args/max_new_tokens")).to_have_count(0)  # nothing is generated
    request = submitted(served, page)
    expected = [[("system", "Be brief."), ("user", "Who is Ben?"), ("assistant", "Ben is")], [("user", "And Anna?")]]
    assert [[(each["role"], each["content"]) for each in one] for one in request["messages"]] == expected
    assert request["generated_text"] == [" kind", "So is she"]
    assert request["input_text"] is None


def test_a_chat_job_is_edited_and_run_again_with_what_rows_cannot_show(served, open_page, chat_model):
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Add "}, {"type": "text", "text": "numbers."}]},
        {"role": "user", "content": "1 + 2?", "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {"role": "developer", "content": ""},
    ]
    job_id = served.submit(
        model=chat_model, method="saliency", messages=messages, chat_template_args={"enable_thinking": False}
    )
    page = open_page(served, f"/#/?from={job_id}")
    expect(field(page, "/messages/1/content")).to_have_value("1 + 2?")
    expect(field(page, "/messages/0/content")).to_have_count(0)
    assert json.loads(field(page, "/messages/0/more").input_value()) == {"content": messages[0]["content"]}
    calls = field(page, "/messages/2/more")
    kept = calls.input_value()
    calls.fill("{")
    page.get_by_role("button", name="Attribute", exact=True).click()
    expect(calls).to_be_focused()
    expect(page.get_by_role("alert")).to_contain_text("not a JSON object")
    calls.fill(kept)
    assert submitted(served, page) == served.job(job_id)["request"]


# Methods and functions


def test_methods_are_grouped_and_say_what_they_cost(served, open_page):
    page = open_page(served)
    expect(field(page, "/method")).to_have_value("input_x_gradient")
    groups = page.locator('[data-pointer="/method"] optgroup').evaluate_all(
        "all => all.map(group => [group.label, [...group.children].map(each => [each.value, each.textContent])])"
    )
    assert [label for label, _ in groups] == ["Gradient", "Perturbation", "Internals", "No attribution"]
    texts = {name: text for _, options in groups for name, text in options}
    methods = inseq_catalogue.methods()
    assert set(texts) == set(methods)
    assert [name for name, text in texts.items() if "start here" in text] == ["input_x_gradient"]
    for name in ("integrated_gradients", "occlusion", "attention"):
        assert texts[name].strip() == f"{methods[name].title} ({name}) · costs {cost_of(methods[name]).words}"
    field(page, "/method").select_option("lime")
    expect(field(page, "/attribution_args/n_samples")).to_have_value("50")  # what multiplies the cost stands beside it
    expect(page.get_by_label("Samples n_samples")).to_have_count(1)
    fold(page, "Arguments of LIME").click()
    field(page, "/attribution_args/mask_prob").fill("0.5")
    fold(page, "Scores of each generated token").click()
    page.get_by_label("Perplexity").check()
    assert submitted(served, page)["attribution_args"] == {"mask_prob": 0.5}


def test_a_contrast_of_a_decoder_needs_no_retyped_prompt(served, open_page):
    page = open_page(served)
    fold(page, "What is attributed").click()
    field(page, "/attributed_fn").select_option("contrast_prob_diff")
    contrast = field(page, "/attributed_fn_args/contrast_targets")
    expect(field(page, "/attributed_fn_args/contrast_sources")).to_have_count(0)
    page.locator(".attributed").get_by_role("button", name="Begin with the input text").click()
    contrast.press("End")
    page.keyboard.type(" milk")
    fold(page, "Generated text").click()
    page.locator(".generation").get_by_role("button", name="Begin with the input text").click()
    field(page, "/generated_text").press("End")
    page.keyboard.type(" tea")
    # Both follow the input text.
    field(page, "/input_text").fill("Ben likes milk. Anna likes tea. Anna likes")
    request = submitted(served, page)
    assert request["generated_text"] == "Ben likes milk. Anna likes tea. Anna likes tea"
    assert request["attributed_fn_args"] == {"contrast_targets": "Ben likes milk. Anna likes tea. Anna likes milk"}
    page = open_page(served)
    page.get_by_role("button", name="English to Italian").click()
    fold(page, "What is attributed").click()
    field(page, "/attributed_fn").select_option("contrast_prob_diff")
    pointers = page.locator('[data-pointer^="/attributed_fn_args/"]').evaluate_all(
        "all => all.map(each => each.dataset.pointer)"
    )
    assert [each.rpartition("/")[2] for each in pointers[:2]] == ["contrast_targets", "contrast_sources"]


# Estimates


def test_the_estimate_follows_what_is_typed(served, open_page):
    page = open_page(served)
    estimate = page.locator(".estimate")
    passes = re.compile(r"on cpu: ([\d,]+) passes")
    expect(estimate).to_have_text(passes)
    asked = []
    page.on("request", lambda each: each.url.endswith("/estimate") and asked.append(each))
    page.route("**/attribution/estimate", lambda route: None)  # the first is never answered
    with page.expect_request("**/attribution/estimate") as first:
        field(page, "/input_text").fill("Anna likes milk. Anna likes")
    expect(estimate).to_have_text("estimating…")
    with page.expect_event("requestfailed", lambda each: each is first.value):  # it is given up
        field(page, "/method").select_option("integrated_gradients")
    page.unroute("**/attribution/estimate")
    field(page, "/attribution_args/n_steps").fill("")
    field(page, "/attribution_args/n_steps").press_sequentially("12")
    expect(estimate).to_have_text(passes)
    # Of what was typed in one go, the end alone was asked.
    assert len(asked) <= 3
    assert asked[-1].post_data_json["attribution_args"] == {"n_steps": 12}
    answer = served.client.post("/attribution/estimate", json=asked[-1].post_data_json).json()
    found = passes.search(estimate.inner_text()).group(1)
    assert int(found.replace(",", "")) == answer["forward_passes"] + answer["backward_passes"]
    # Nothing is asked of a draft that is not complete, or of a model that is not there.
    count = len(asked)
    for pointer, value in (
        ("/attribution_args/n_steps", "many"),
        ("/model", "some-org/some-model"),
        ("/attribution_args/n_steps", "12"),
    ):
        field(page, pointer).fill(value)
        expect(estimate).to_have_text("")
    page.wait_for_timeout(900)  # longer than the pause after which the server is asked
    assert len(asked) == count


# Texts to copy


# What `copy_texts.js` writes: the name of its function, and what it is given beside the server.
WRITE = """async ([name, given]) => {
  const text = (await import('/static/js/copy_texts.js'))[name]({...given, server: location.origin});
  return text.text ?? text;
}"""


def copied(page, way):
    page.locator(".copy-as").get_by_label(way, exact=True).check()
    return page.locator(".copy-as pre").inner_text()


def shell(script):
    """What a POSIX shell prints for a script, in which `attribution` is this tree's command."""
    command = f'attribution() {{ {sys.executable} -m attribution_client "$@"; }}\n'
    done = subprocess.run(["sh", "-s"], capture_output=True, text=True, check=False, cwd=ROOT, input=command + script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_json(command):
    """The command that the page wrote, printing JSON."""
    return re.sub(r" (attribute|show \w+) ", r" \1 --json ", command, count=1)


def python(script):
    """The result that a script leaves, as JSON."""
    names = {}
    exec(script, names)
    return names["result"].model_dump(mode="json")


def scores(result):
    (sequence,) = result["sequence_attributions"]
    return sequence["target_attributions"], sequence["step_scores"], [each["token"] for each in sequence["target"]]


def test_copied_texts_give_the_result_of_the_page(served, open_page):
    page = open_page(served)
    field(page, "/input_text").fill(HARD)
    fold(page, "Generated text").click()
    field(page, "/generation_args/max_new_tokens").fill("2")
    fold(page, "Seed, limits and tags").click()
    field(page, "/tags").fill(json.dumps({"of": "Anna's $HOME"}))
    page.locator(".copy-as summary").click()
    texts = {way: copied(page, way) for way in ("curl", "Python", "Command line", "JSON")}
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".copy-as").get_by_role("button", name="Copy").click()
    expect(page.locator(".copy-as").get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == texts["JSON"]
    request = submitted(served, page)
    expected = scores(served.result(opened_job(page)))
    assert request["input_text"] == HARD
    assert json.loads(texts["JSON"]) == {name: request[name] for name in json.loads(texts["JSON"])}
    found = {
        "curl": json.loads(shell(texts["curl"])),
        "Python": python(texts["Python"]),
        "Command line": json.loads(shell(as_json(texts["Command line"]))),
    }
    for way, result in found.items():
        assert scores(result) == expected, way
    jobs = served.client.get("/attribution/jobs").json()["jobs"]
    assert [job["request"] for job in jobs] == [request] * 4


def test_a_copied_command_sends_a_conversation(served, open_page, chat_model):
    page = open_page(served)
    body = {
        "model": chat_model, "method": "saliency", "messages": [{"role": "user", "content": HARD}],
        "chat_template_args": {"enable_thinking": False}, "generated_text": "-a", "timeout_seconds": 60,
    }  # fmt: skip
    text = page.evaluate(WRITE, ["commandText", {"request": body}])
    shell(as_json(text))
    (job,) = served.client.get("/attribution/jobs").json()["jobs"]
    assert {name: job["request"][name] for name in body if name != "messages"} == {
        name: value for name, value in body.items() if name != "messages"
    }
    assert [each["content"] for each in job["request"]["messages"]] == [HARD]


def test_copied_texts_read_a_job_in_its_view(served, open_page):
    job_id = served.run(model=PHRASEBOOK, methods=["saliency", "occlusion"], input_text="the red cat sees a dog")
    view = {"method": "occlusion", "aggregator": "subwords", "normalize": "false"}
    expected = served.result(job_id, **view)["sequence_attributions"][0]["source_attributions"]
    page = open_page(served)
    given = {"jobId": job_id, "view": view, "request": served.job(job_id)["request"]}
    runs = {
        "curlText": lambda text: json.loads(shell(text)),
        "pythonText": python,
        "commandText": lambda text: json.loads(shell(as_json(text))),
    }
    for name, run in runs.items():
        result = run(page.evaluate(WRITE, [name, given]))
        assert result["sequence_attributions"][0]["source_attributions"] == expected, name


def test_any_text_is_one_word_of_a_shell_and_one_literal_of_python(served, open_page):
    page = open_page(served)
    texts = [
        HARD,
        "",
        "'",
        "''",
        "-x",
        "a b",
        "~",
        "*",
        "#x",
        "a\nb",
        "\u2028",
        "\\",
        "é🙂",
        "$(ls)",
        "!!",
        "a=b",
        "\u0007",
    ]
    words, literals = page.evaluate(
        """async texts => {
          const {shellWord, pythonValue} = await import('/static/js/copy_texts.js');
          return [texts.map(shellWord), pythonValue({texts, 'a b': [true, false, null, 1.5, -2, {}]}, 4)];
        }""",
        texts,
    )
    assert shell("printf '%s\\001' " + " ".join(words)).split("\1")[:-1] == texts
    assert ast.literal_eval(literals) == {"texts": texts, "a b": [True, False, None, 1.5, -2, {}]}


# Looks


def test_axe_finds_nothing_in_the_form(served, open_page, chat_model):
    page = open_page(served, color_scheme="dark")
    field(page, "/model").fill(chat_model)
    page.get_by_role("button", name="Add a system prompt").click()
    page.get_by_role("button", name="Add a message").click()
    page.get_by_role("button", name="Tool fields").click()
    page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
    field(page, "/attributed_fn").select_option("kl_divergence")
    page.locator(".copy-as pre").wait_for()
    field(page, "/model").click()
    scans = [Axe().run(page)]
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme="light")
    scans.append(Axe().run(page))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    found = [each for scan in scans for each in scan.response["violations"]]
    assert [(each["id"], [node["html"][:150] for node in each["nodes"]]) for each in found] == []
