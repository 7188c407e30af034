/** Aligned columns for people. Scripts take `--json`. */

export interface Column<Row> {
  readonly header: string;
  readonly value: (row: Row) => string;
  /** Numbers read better right-aligned. */
  readonly align?: 'left' | 'right';
}

const GAP = '  ';

/**
 * Names and messages come from other machines: a control character among them (an escape sequence, a line break)
 * must not reach the terminal.
 */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, '\ufffd');
}

/** The table with its header line, each line ended; cells that are empty show `-`. */
export function formatTable<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): string {
  const cells = rows.map((row) => columns.map((column) => printable(column.value(row)) || '-'));
  const lines = [columns.map((column) => column.header), ...cells];
  const widths = columns.map((_, index) => Math.max(...lines.map((line) => line[index]!.length)));
  return lines.map((line) => `${formatLine(line, widths, columns)}\n`).join('');
}

function formatLine<Row>(line: string[], widths: number[], columns: readonly Column<Row>[]): string {
  return line
    .map((cell, index) =>
      columns[index]!.align === 'right' ? cell.padStart(widths[index]!) : cell.padEnd(widths[index]!),
    )
    .join(GAP)
    .trimEnd();
}

/** One thing's properties, a line each. */
export function formatProperties(properties: readonly (readonly [name: string, value: string])[]): string {
  const width = Math.max(...properties.map(([name]) => name.length));
  return properties
    .map(([name, value]) => `${name.padEnd(width)}${GAP}${printable(value) || '-'}\n`)
    .join('');
}
