// The rows of a conversation in the form, and their conversion from and to messages.
//
// A row is {id, role, content, more}. `more` is the JSON text of what a row has no control for (tool calls, a name, a
// content in parts), or null.
import { parsed } from "./field_specs.js";

let lastId = 0;

export const newRow = (role = "user", content = "") => ({ id: ++lastId, role, content, more: null });

/** The row that produces this message. */
export function rowOf({ role, content, ...others }) {
  const given = Object.fromEntries(Object.entries(others).filter(([, value]) => value !== null && value !== undefined));
  const isText = typeof content === "string";
  if (!isText) given.content = content ?? null;
  const more = Object.keys(given).length ? JSON.stringify(given, null, 2) : null;
  return { ...newRow(role, isText ? content : ""), more };
}

/** The message of a row. What is no JSON object is left out: `problemOf` says so. */
export function messageOf(row) {
  const more = moreOf(row) ?? {};
  const message = { role: row.role, content: row.content, ...more };
  if (row.content) message.content = row.content;
  return message;
}

/** What is wrong with a row's JSON, or null. */
export function problemOf(row) {
  if (moreOf(row)) return null;
  return "This is not a JSON object, such as {\"tool_calls\": [...]}. Mend it, or remove it.";
}

/** Whether the row's content is in its JSON: parts, or null beside tool calls. */
export const hasContentInJson = (row) => !row.content && "content" in (moreOf(row) ?? {});

/** The row's other fields; undefined if their text is no JSON object. */
function moreOf(row) {
  if (!row.more?.trim()) return {};
  const value = parsed(row.more);
  return value && typeof value === "object" && !Array.isArray(value) ? value : undefined;
}

/** The role that a message after these rows probably has. */
export const nextRole = (rows) => (["user", "tool"].includes(rows.at(-1)?.role) ? "assistant" : "user");

/** The user's last words. */
export const lastUserText = (rows) => rows.findLast(isUsers)?.content ?? "";

/** The rows with this text as the user's last words. */
export function withUserText(rows, text) {
  const index = rows.findLastIndex(isUsers);
  if (index < 0) return text ? [...rows, newRow("user", text)] : rows;
  return rows.map((row, other) => (other === index ? { ...row, content: text } : row));
}

const isUsers = (row) => row.role === "user" && !hasContentInJson(row);
