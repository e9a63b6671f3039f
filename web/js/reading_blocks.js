// A sequence as blocks of running text: the turns of a conversation, or prompt and answer, or source and target.

/**
 * Blocks in reading order, each `{key, label, entries}`; an entry is `{token, row, column}` with the token's row and
 * column in the table of scores, where it has them.
 */
export function blocksOf(sequence, table) {
  const { source, target, attr_pos_start: start, attr_pos_end: end } = sequence;
  const rows = new Map(table.rows.map(({ side, index }, row) => [`${side}${index}`, row]));
  const entriesOf = (side, tokens) => tokens.map((token, index) => ({
    token,
    row: rows.get(`${side}${index}`),
    column: side === "target" && index >= start && index < end ? index - start : undefined,
  }));
  const given = entriesOf("target", target);
  if (!table.rows.some(({ side }) => side === "source")) return turnsOf(given) ?? parted(given, start);
  const written = given.filter(({ token }) => !token.span);
  return [
    ...(turnsOf(entriesOf("source", source)) ?? [{ key: "source", label: "Source", entries: entriesOf("source", source) }]),
    { key: "target", label: "Target", entries: written },
    ...spansOf(given),
  ];
}

/** Prompt and answer; what is attributed may begin behind the prompt's end. */
function parted(entries, start) {
  const answer = entries.findIndex(({ token }) => !token.prompt);
  const end = answer > 0 ? answer : start;
  return [
    { key: "prompt", label: "Prompt", entries: entries.slice(0, end) },
    { key: "generated", label: "Generated text", entries: entries.slice(end).filter(({ token }) => !token.span) },
    ...spansOf(entries),
  ].filter((block) => block.entries.length);
}

/** A block for each span of the text that was attributed as a whole. */
const spansOf = (entries) => entries.filter(({ token }) => token.span).map((entry, index) => ({ key: `span ${index}`, label: "Span", entries: [entry] }));

/** A block for each turn of a conversation, or null for tokens that are none. */
function turnsOf(entries) {
  if (!entries.some(({ token }) => token.role)) return null;
  const blocks = [];
  for (const entry of entries.filter(({ token }) => !token.span)) {
    const { turn, role } = entry.token;
    if (!blocks.length || blocks.at(-1).turn !== turn) blocks.push({ key: `turn ${turn}`, turn, label: role ?? "", entries: [] });
    blocks.at(-1).entries.push(entry);
  }
  return [...blocks, ...spansOf(entries)];
}
