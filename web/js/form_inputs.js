// What is attributed: texts, or conversations with a chat model.
import { Conversation } from "./form_chat.js";
import { errorsAt, Labelled } from "./form_field.js";
import { takesChat } from "./model_facts.js";
import { html } from "./preact.js";
import { emptyInput, inputPointer, messagePointer, withKind, withText } from "./request_draft.js";

/** The switch between texts and conversations. */
export function KindOfInput({ draft, catalogue, change }) {
  const choose = (isChat) => change((draft) => ({ ...withKind(draft, isChat, catalogue), isKindChosen: true }));
  const isUnfit = draft.isChat && takesChat(catalogue.models, draft.model) === false;
  const kinds = [["Text", false], ["Chat", true]];
  return html`
    <fieldset class="choices">
      <legend class="hidden">Kind of input</legend>
      ${kinds.map(([name, isChat]) => html`
        <label><input type="radio" name="kind" value=${name.toLowerCase()} checked=${draft.isChat === isChat} onChange=${() => choose(isChat)} /> ${name}</label>`)}
      ${isUnfit && html`<p class="error">This model’s tokenizer has no chat template: it takes text alone.</p>`}
    </fieldset>
  `;
}

export function Inputs({ draft, catalogue, errors, change }) {
  const isOne = draft.inputs.length === 1;
  const edit = (index, changes) => change((draft) => ({
    ...draft, inputs: draft.inputs.map((each, other) => (other === index ? { ...each, ...changes } : each)),
  }));
  const remove = (index) => change((draft) => ({ ...draft, inputs: draft.inputs.filter((_, other) => other !== index) }));
  const name = draft.isChat ? "messages" : "input_text";
  // Errors about the whole list are shown at its first text.
  const at = (index) => (isOne ? errorsAt(errors, `/${name}`)
    : errors.filter(({ pointer }) => errorsAt([{ pointer }], `/${name}/${index}`).length || (index === 0 && pointer === `/${name}`)));
  return draft.inputs.map((input, index) => {
    const what = `${draft.isChat ? "Conversation" : "Input text"}${isOne ? "" : ` ${index + 1}`}`;
    return html`
      <div class="input" key=${index}>
        ${draft.isChat
          ? html`<${Conversation} label=${what} rows=${input.messages} pointer=${messagePointer(draft, index)} errors=${at(index)}
              onChange=${(messages) => edit(index, { messages })} />`
          : html`<${Labelled} label=${what} pointer=${inputPointer(draft, name, index)} errors=${at(index)}
              control=${(attributes) => html`
                <textarea ...${attributes} rows="3" dir="auto" value=${input.text}
                  onInput=${(event) => change((draft) => withText(draft, index, event.target.value, catalogue))} />`} />`}
        ${!isOne && html`<button type="button" class="quiet" onClick=${() => remove(index)}>Remove ${what.toLowerCase()}</button>`}
      </div>`;
  });
}

export function AddInput({ draft, change }) {
  const add = () => change((draft) => ({ ...draft, inputs: [...draft.inputs, emptyInput()] }));
  return html`<button type="button" onClick=${add}>Add ${draft.isChat ? "a conversation" : "a text"}</button>`;
}
