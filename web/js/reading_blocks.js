// A sequence as blocks of running text: the turns of a conversation, or prompt and answer, or source and target; spans apart.

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
  const all = entriesOf("target", target);
  const given = all.filter(({ token }) => !token.span);
  const spans = { key: "spans", label: "Spans", entries: all.slice(given.length) }; // they stand behind the text
  const text = !table.rows.some(({ side }) => side === "source") ? turnsOf(given) ?? parted(given, start) : [
    ...(turnsOf(entriesOf("source", source)) ?? [{ key: "source", label: "Source", entries: entriesOf("source", source) }]),
    { key: "target", label: "Target", entries: given },
  ];
  return [...text, spans].filter((block) => block.entries.length);
}

/** Prompt and answer. The attributed tokens may begin later than the answer; results of older versions know no more. */
function parted(entries, start) {
  const answer = entries.findIndex(({ token }) => !token.prompt);
  const border = entries[0]?.token.prompt ? (answer < 0 ? entries.length : answer) : start;
  return [
    { key: "prompt", label: "Prompt", entries: entries.slice(0, border) },
    { key: "generated", label: "Generated text", entries: entries.slice(border) },
  ];
}

/** A block for each turn of a conversation, or null for tokens that are none. */
function turnsOf(entries) {
  if (!entries.some(({ token }) => token.role)) return null;
  const blocks = [];
  for (const entry of entries) {
    const { turn, role } = entry.token;
    if (!blocks.length || blocks.at(-1).turn !== turn) blocks.push({ key: `turn ${turn}`, turn, label: role ?? "", entries: [] });
    blocks.at(-1).entries.push(entry);
  }
  return blocks;
}
